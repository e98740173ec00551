"""The tables of a SQLite store, and its longer queries."""

from jaxrec.serving.stores.base import NEVER

# Tables keep the names that they had in the first version, so that existing files can be opened.
SCHEMA = """
CREATE TABLE IF NOT EXISTS shoppers
    (user_id TEXT PRIMARY KEY, version INTEGER, written REAL, document BLOB) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_age ON shoppers (written);
CREATE TABLE IF NOT EXISTS shown (user_id TEXT, time INTEGER, document TEXT);
CREATE INDEX IF NOT EXISTS shown_to ON shown (user_id, time);
CREATE INDEX IF NOT EXISTS shown_at ON shown (time);
CREATE TABLE IF NOT EXISTS deleted (user_id TEXT PRIMARY KEY, time INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deleted_at ON deleted (time);
CREATE TABLE IF NOT EXISTS tombstone_key (id INTEGER PRIMARY KEY CHECK (id = 1), key BLOB);
INSERT OR IGNORE INTO tombstone_key VALUES (1, randomblob(32));
CREATE TABLE IF NOT EXISTS heartbeat (id INTEGER PRIMARY KEY CHECK (id = 1), time REAL);
"""
HEARTBEAT = (
    "INSERT INTO heartbeat VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET time = excluded.time"
)
# when a user was deleted; earlier versions kept the id itself in place of its hash
DELETED = "(SELECT max(time) FROM deleted WHERE user_id IN ({id}, {hash}))"
# documents whose version the caller knows stay on disk
LOAD = f"""
SELECT ids.key, version,
    CASE WHEN version = json_extract(ids.value, '$[0]') THEN NULL ELSE document END,
    {DELETED.format(id="ids.key", hash="json_extract(ids.value, '$[1]')")}
FROM json_each(?) AS ids LEFT JOIN shoppers ON shoppers.user_id = ids.key
"""
SAVE_NEW = f"""
INSERT OR IGNORE INTO shoppers (version, written, document, user_id)
SELECT ?1, ?2, ?3, ?4 WHERE coalesce({DELETED.format(id="?4", hash="?5")}, {NEVER}) = ?6
"""
SHOW = f"""
INSERT INTO shown
SELECT ?1, ?2, ?3 WHERE coalesce({DELETED.format(id="?1", hash="?4")}, {NEVER}) < ?2
"""
