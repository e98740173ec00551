"""The optimizer and its learning rate."""

import optax

from jaxrec.config import TrainConfig


def make_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with clipped gradients, linear warm-up and cosine decay to the last of `steps`."""
    total = max(steps, 1)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup_steps, total // 2),
        decay_steps=total,
        end_value=config.learning_rate * config.final_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )
