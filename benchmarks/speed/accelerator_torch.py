"""The peers of `accelerator.py` in torch; neither JAX nor jaxrec is needed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerator_rows import (
    BATCH,
    Rows,
    Sizes,
    lstm_arrays,
    lstm_cases,
    lstm_flops,
    rank_all,
    ranking_errors,
    ranking_vectors,
    relative_error,
    time_of,
)
from torch import Tensor, nn
from torch.nn import functional

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
CHECKED_ROWS = 8
HEADS = 2


def versions() -> dict[str, str]:
    """The card and the version of torch."""
    card = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    return {"card": card, "torch": torch.__version__}


def wait(_: object = None) -> None:
    """Return when the device has finished."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def lstm(rows: Rows, sizes: Sizes) -> None:
    """`torch.nn.LSTM` (cuDNN on a card), forward and backward.

    Errors are beside float64 on the CPU, for the first rows: outputs and gradients of the input.
    """
    cases = lstm_cases(sizes, *(f"torch {dtype}" for dtype in DTYPES))
    for case, system, batch_size, length, width in rows.measured(cases):
        arrays = lstm_arrays(batch_size, length, width)
        run = lstm_step(arrays, DEVICE, DTYPES[system.split()[1]])
        first = {name: arrays[name][:CHECKED_ROWS] for name in ("x", "cotangent")}
        exact = lstm_step(arrays | first, torch.device("cpu"), torch.float64)()
        found = [part[:CHECKED_ROWS].float().cpu() for part in run()]
        error = max(map(relative_error, found, exact))
        times = time_of(run, wait, sizes.repeats)
        flops = lstm_flops(batch_size, length, width)
        rows.add(case, system, times, flops=flops, error=error)


def lstm_step(
    arrays: dict[str, np.ndarray], device: torch.device, dtype: torch.dtype
) -> Callable[[], list[Tensor]]:
    """A function that returns the outputs and the gradient of the input."""
    tensors = {name: torch.tensor(a, dtype=dtype, device=device) for name, a in arrays.items()}
    x = tensors["x"].requires_grad_()
    layer = nn.LSTM(x.shape[2], x.shape[2], batch_first=True).to(device, dtype)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(tensors["input"].T)
        layer.weight_hh_l0.copy_(tensors["recurrent"].T)
        layer.bias_ih_l0.copy_(tensors["bias"])
        layer.bias_hh_l0.zero_()

    def run() -> list[Tensor]:
        layer.zero_grad()
        x.grad = None
        outputs = layer(x)[0]
        outputs.backward(tensors["cotangent"])
        return [outputs.detach(), x.grad]

    return run


def ranking(rows: Rows, sizes: Sizes) -> None:
    """Products and `topk` of all items, from users on the host to lists on the host."""
    cases = [
        (f"D={width}, {block} users at a time", system, width, block)
        for width in sizes.rank_widths
        for block in sizes.blocks
        for system in ("torch float32", "torch TF32")
    ]
    for number, (case, system, width, block) in enumerate(rows.measured(cases)):
        torch.backends.cuda.matmul.allow_tf32 = system == "torch TF32"
        users, items = ranking_vectors(sizes, width)
        table = torch.from_numpy(items).to(DEVICE)
        best, scores = best_items(users[:64], table, sizes.k, block)
        errors = ranking_errors(users[:64], items, best, scores)
        run = partial(best_items, users, table, sizes.k, block)
        figures = rank_all(run, sizes, rows, 1 / (len(cases) - number))
        flops = 2 * sizes.items * width * figures["users"]
        rows.add(case, system, [figures.pop("ranking_seconds")], flops=flops, **figures, **errors)


def best_items(
    users: np.ndarray, table: Tensor, k: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best items and their scores, [U, k] each."""
    best = np.empty((len(users), k), np.int32)
    scores = np.empty((len(users), k), np.float32)
    for start in range(0, len(users), block):
        part = slice(start, start + block)
        top = torch.topk(torch.from_numpy(users[part]).to(DEVICE) @ table.T, k)
        best[part], scores[part] = top.indices.cpu().numpy(), top.values.cpu().numpy()
    return best, scores


class SASRec(nn.Module):
    """Causal self-attention blocks with norms first (SASRec, arXiv:1808.09781), on packed rows."""

    def __init__(self, num_items: int, width: int, num_layers: int, length: int):
        super().__init__()
        self.items = nn.Embedding(num_items, width)
        self.positions = nn.Embedding(length, width)
        self.layers = nn.ModuleList(SASRecLayer(width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.items.weight, std=width**-0.5)

    def forward(self, items: Tensor, starts: Tensor) -> Tensor:
        """Vectors [B, T, D] after every event; `starts` begins another history of the row."""
        history = starts.long().cumsum(1)
        steps = torch.arange(items.shape[1], device=items.device)
        begun = torch.where(starts, steps, 0).cummax(1).values
        mask = (history[:, :, None] == history[:, None]) & (steps[:, None] >= steps)
        x = self.items(items) * self.items.embedding_dim**0.5 + self.positions(steps - begun)
        for layer in self.layers:
            x = layer(x, mask[:, None])
        return self.norm(x)


class SASRecLayer(nn.Module):
    """Attention and a feed-forward network, each behind a norm and beside a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]; `mask` is true where a step may look."""
        heads = self.project(self.attention_norm(x)).unflatten(2, (3, HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norm(x))


def sasrec(rows: Rows, sizes: Sizes, inputs: Path) -> None:
    """A step of SASRec with ids alone, on the rows and targets of jaxrec, by batch size.

    The error is that of the loss of the first step, beside float64 on the CPU.
    """
    batch = dict(np.load(inputs / BATCH))
    cases = [
        (f"{number} rows", f"torch SASRec {dtype}", number, dtype)
        for dtype in DTYPES
        for number in sizes.batch_sizes
    ]
    exact: dict[int, float] = {}
    for case, system, number, dtype in rows.measured(cases):
        torch.manual_seed(0)
        shape = int(batch["num_items"]), int(batch["width"]), int(batch["num_layers"])
        model = SASRec(*shape, batch["items"].shape[1])
        part = {
            name: torch.from_numpy(batch[name][:number])
            for name in ("items", "starts", "targets", "weights")
        }
        if number == min(sizes.batch_sizes) and not exact:
            exact[number] = loss_of(model.double(), part, None).item()
        model = model.float().to(DEVICE)
        part = {name: values.to(DEVICE) for name, values in part.items()}
        run = sasrec_step(model, part, DTYPES[dtype])
        first = run().item()
        errors = {"error": abs(first / exact[number] - 1)} if number in exact else {}
        times = time_of(run, wait, sizes.repeats)
        targets = int(np.count_nonzero(batch["weights"][:number]))
        rows.add(case, system, times, targets=targets, **errors)


def loss_of(model: SASRec, batch: dict[str, Tensor], dtype: torch.dtype | None) -> Tensor:
    """The mean softmax loss over all items at the time steps with a target."""
    with torch.autocast(DEVICE.type, dtype, enabled=dtype == torch.bfloat16):
        used = batch["weights"] > 0
        vectors = model(batch["items"].long(), batch["starts"])[used]
        logits = vectors @ model.items.weight.T
        return functional.cross_entropy(
            logits.float() if dtype else logits, batch["targets"].long()[used]
        )


def sasrec_step(
    model: SASRec, batch: dict[str, Tensor], dtype: torch.dtype
) -> Callable[[], Tensor]:
    """A training step that returns the loss before it."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=DEVICE.type == "cuda")

    def run() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch, dtype)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return loss.detach()

    return run
