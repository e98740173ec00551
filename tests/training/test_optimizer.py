import jax.numpy as jnp
import numpy as np

from jaxrec.config import TrainConfig
from jaxrec.training.optimizer import make_optimizer


def test_the_learning_rate_warms_up_and_decays_to_its_final_share():
    """With a constant gradient and no weight decay, AdamW moves by the learning rate."""
    config = TrainConfig(warmup_steps=2, learning_rate=0.5, final_rate=0.1, weight_decay=0.0)
    optimizer = make_optimizer(config, steps=8)
    param = jnp.ones(())
    state = optimizer.init(param)
    rates = []
    for _ in range(9):
        update, state = optimizer.update(jnp.ones(()), state, param)
        rates.append(-float(update))
    np.testing.assert_allclose([rates[0], rates[1], rates[2], rates[8]], [0, 0.25, 0.5, 0.05], 1e-4)
    assert rates[2:] == sorted(rates[2:], reverse=True)
