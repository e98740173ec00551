"""The shipped layouts, each on a tiny directory with the files of the public data set."""

import gzip
import json
from pathlib import Path

import pytest

from jaxrec.data.sources import load_source
from jaxrec.data.spec import layouts
from jaxrec.data.stream import open_events

REES46 = (
    "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
    "2019-10-01 00:00:00 UTC,view,44600062,2103807459595387724,,shiseido,35.79,541312140,72d7\n"
    "2019-10-01 00:00:04 UTC,purchase,1003461,2053013555631882655,electronics.smartphone,xiaomi,"
    "489.07,520088904,4d3b\n"
)
HM_ARTICLES = (
    "article_id,product_code,prod_name,product_type_name,product_group_name,index_group_name,"
    'detail_desc\n0108775015,0108775,Strap top,Vest top,Garment Upper body,Ladieswear,"Jersey, '
    'narrow straps."\n'
)
GA4 = {
    "event_date": "20191002",
    "event_timestamp": "1570025137000000",
    "event_name": "view_item",
    "user_pseudo_id": "77.88",
    "items": [{"item_id": "A1", "item_name": "Mug", "item_brand": "B", "item_category": "Home"}],
}
SHOPIFY = (
    "Name,Email,Financial Status,Created at,Lineitem quantity,Lineitem name,Lineitem price,"
    "Lineitem sku,Vendor\n"
    "#1001,a@b.example,paid,2019-10-02 10:05:37 -0400,1,Mug,9.50,MUG-1,Acme\n"
    "#1001,,,,2,Plate,12.00,,Acme\n"
)
FILES = {
    "amazon2023": {
        "Beauty.jsonl.gz": json.dumps(
            {
                "rating": 5.0,
                "title": "Nice",
                "asin": "B1",
                "parent_asin": "P1",
                "user_id": "U",
                "timestamp": 1570025137000,
                "images": [],
            }
        ),
        "meta_Beauty.jsonl.gz": json.dumps(
            {
                "main_category": "Beauty",
                "title": "Soap",
                "price": "9.99",
                "store": "Acme",
                "categories": ["Beauty", "Soap"],
                "description": ["Mild."],
                "parent_asin": "P1",
            }
        ),
    },
    "diginetica": {
        "train-item-views.csv": "sessionId;userId;itemId;timeframe;eventdate\n1;NA;81766;0;"
        "2016-05-09\n1;NA;31331;1500;2016-05-09\n",
        "train-purchases.csv": "sessionId;userId;timeframe;eventdate;ordernumber;itemId\n"
        "1;NA;2000;2016-05-09;16;81766\n",
        "products.csv": "itemId;pricelog2;product.name.tokens\n81766;10;4,5\n31331;3;6\n",
        "product-categories.csv": "itemId;categoryId\n81766;1096\n",
    },
    "ga4": {"events_20191002.json": json.dumps(GA4)},
    "hm": {
        "transactions_train.csv": "t_dat,customer_id,article_id,price,sales_channel_id\n"
        "2018-09-20,000058a1,0108775015,0.0508,2\n",
        "articles.csv": HM_ARTICLES,
        "customers.csv": "customer_id,FN\n000058a1,\n",
    },
    "instacart": {
        "orders.csv": "order_id,user_id,eval_set,order_number,order_dow,order_hour_of_day,"
        "days_since_prior_order\n10,1,prior,1,2,08,\n11,1,train,2,3,07,15.0\n",
        "order_products__prior.csv": "order_id,product_id,add_to_cart_order\n10,196,1\n",
        "order_products__train.csv": "order_id,product_id,add_to_cart_order\n11,196,1\n",
        "products.csv": "product_id,product_name,aisle_id,department_id\n196,Soda,77,7\n",
        "aisles.csv": "aisle_id,aisle\n77,soft drinks\n",
        "departments.csv": "department_id,department\n7,beverages\n",
    },
    "movielens": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,307,3.5,1256677221\n"
        "1,481,1.0,1256677222\n",
        "movies.csv": "movieId,title,genres\n307,Blue (1993),Drama|Mystery\n481,Kalifornia (1993),"
        "(no genres listed)\n",
        "tags.csv": "userId,movieId,tag,timestamp\n14,110,epic,1443148538\n",
    },
    "rees46": {"2019-Oct.csv.gz": REES46},
    "retailrocket": {
        "events.csv": "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,"
        "355908,\n1433221332118,257597,addtocart,355908,\n1433221332119,257597,transaction,355908,4\n",
        "item_properties_part1.csv": "timestamp,itemid,property,value\n1435460400000,355908,"
        "categoryid,1338\n",
        "item_properties_part2.csv": "timestamp,itemid,property,value\n1435460400001,355908,"
        "categoryid,1339\n1435460400001,355908,available,1\n",
        "category_tree.csv": "categoryid,parentid\n1339,213\n213,\n",
    },
    "shopify": {"orders_export_1.csv": SHOPIFY},
    "taobao": {
        "UserBehavior.csv": "1,2268318,2520377,pv,1511544070\n1,2333346,2520771,fav,1511561733\n"
    },
    "tmall": {
        "user_log_format1.csv": "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type\n"
        "328862,323294,833,2882,2661,829,0\n328862,844400,1271,2882,2661,1111,2\n"
    },
    "yoochoose": {
        "yoochoose-clicks.dat": "1,2014-04-07T10:51:09.277Z,214536502,0\n"
        "1,2014-04-07T10:54:09.868Z,214536500,5\n",
        "yoochoose-buys.dat": "1,2014-04-07T10:57:09.868Z,214536500,12462,1\n",
    },
}
# user, item, milliseconds, event type of the first and of the last event; columns of the items
EXPECTED = {
    "amazon2023": (("U", "P1", 1570025137000, "review"), None, {"title": "Soap", "price": 9.99}),
    "diginetica": (
        ("1", "81766", 1462752000000, "view"),
        ("1", "81766", 1462752002000, "buy"),
        {"category": "1096", "price": 1024.0},
    ),
    "ga4": (("77.88", "A1", 1570025137000, "view"), None, {"title": "Mug", "categories": ["Home"]}),
    "hm": (("000058a1", "0108775015", 1537401600000, "buy"), None, {"title": "Strap top"}),
    "instacart": (
        ("1", "196", 1483257600000, "buy"),
        ("1", "196", 1483257600000 + (15 * 24 - 1) * 3_600_000, "buy"),
        {"title": "Soda", "categories": ["beverages", "soft drinks"]},
    ),
    "movielens": (
        ("1", "307", 1256677221000, "like"),
        ("1", "481", 1256677222000, "dislike"),
        {"genres": ["Drama", "Mystery"]},
    ),
    "rees46": (
        ("541312140", "44600062", 1569888000000, "view"),
        ("520088904", "1003461", 1569888004000, "buy"),
        {"brand": "shiseido", "price": 35.79, "categories": None},
    ),
    "retailrocket": (
        ("257597", "355908", 1433221332117, "view"),
        ("257597", "355908", 1433221332119, "buy"),
        {"category": "1339"},
    ),
    "shopify": (
        ("a@b.example", "MUG-1", 1570025137000, "buy"),
        ("a@b.example", "Plate", 1570025137000, "buy"),
        {"title": "Mug", "price": 9.5, "brand": "Acme"},
    ),
    "taobao": (
        ("1", "2268318", 1511544070000, "view"),
        ("1", "2333346", 1511561733000, "favourite"),
        {"category": "2520377"},
    ),
    "tmall": (
        ("328862", "323294", 1440806400000, "click"),
        ("328862", "844400", 1447200000000, "buy"),
        {"brand": "2661", "merchant": "2882"},
    ),
    "yoochoose": (
        ("1", "214536502", 1396867869277, "view"),
        ("1", "214536500", 1396868229868, "buy"),
        {"category": None},
    ),
}


def write_files(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir()
    for name, text in files.items():
        content = text.encode()
        (directory / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return directory


def test_every_shipped_layout_is_tested():
    assert layouts() == sorted(FILES)


@pytest.mark.parametrize("layout", sorted(FILES))
def test_a_layout_reads_the_files_of_its_data_set(tmp_path, layout):
    first, last, columns = EXPECTED[layout]
    directory = write_files(tmp_path / "data", FILES[layout])
    tables = load_source(str(directory), layout, strict=True)
    rows = tables.events.select("user_id", "item_id", "timestamp", "event").rows()
    assert rows[0] == first and rows[-1] == (last or first)
    item = tables.items.filter(item_id=first[1]).row(0, named=True)
    assert {name: item[name] for name in columns} == columns


def test_a_directory_to_score_is_read_by_the_same_layout(tmp_path):
    directory = write_files(tmp_path / "data", FILES["movielens"])
    [block] = open_events(directory, 10, layout="movielens").blocks()
    assert block["event"].to_list() == ["like", "dislike"]


def test_retailrocket_has_a_tree_of_categories(tmp_path):
    directory = write_files(tmp_path / "data", FILES["retailrocket"])
    triples = load_source(str(directory), "retailrocket").triples
    assert triples is not None
    assert triples.rows() == [("category", "1339", "child_of", "category", "213")]
