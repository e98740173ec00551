"""An image encoder in ONNX: files of images -> vectors."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from jaxrec.errors import CheckpointError, InputError

if TYPE_CHECKING:
    import onnxruntime

PREPROCESSING = "preprocessor_config.json"
DEFAULT_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
BICUBIC = 3  # as Pillow and preprocessor_config.json number the filters


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of an encoder, as in `preprocessor_config.json`.

    Attributes:
        size: height and width of the input, which is the middle of the resized image.
        resize: height and width, or the shorter side alone, after the image is resized; nothing:
            images stay as they are.
        resample: number of Pillow's filter.
        scale: factor of the values 0 to 255.
        mean, std: of the scaled channels red, green and blue.
    """

    size: tuple[int, int] = (DEFAULT_SIZE, DEFAULT_SIZE)
    resize: tuple[int, ...] = (DEFAULT_SIZE,)
    resample: int = BICUBIC
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def pixels(self, content: bytes) -> Shaped[np.ndarray, "height width 3"]:
        """The pixels of an image file as uint8; raises an OSError if it is no whole image.

        The orientation of the camera is applied, and what is transparent becomes white.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(BytesIO(content)) as opened:
                image = ImageOps.exif_transpose(opened)
                if image.has_transparency_data:
                    image = image.convert("RGBA")
                    white = Image.new("RGBA", image.size, "white")
                    image = Image.alpha_composite(white, image)
                image = self._resized(image.convert("RGB"))
        except UnidentifiedImageError:
            raise OSError("unknown format") from None
        except OSError:
            raise
        except Exception as error:  # what damaged files and huge images raise
            raise OSError(str(error) or type(error).__name__) from error
        return np.asarray(image)

    def _resized(self, image: Any) -> Any:
        from PIL import Image

        (height, width), resample = self.size, Image.Resampling(self.resample)
        match self.resize:
            case (edge,):
                edges = tuple(int(edge * side / min(image.size)) for side in image.size)
                image = image.resize(edges, resample)
            case (rows, columns):
                image = image.resize((columns, rows), resample)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    def normalized(
        self, pixels: Shaped[np.ndarray, "B height width 3"]
    ) -> Float[np.ndarray, "B height width 3"]:
        """Pixels as numbers near 0."""
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        return (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std


@dataclass(frozen=True)
class ImageEncoder:
    """A model of onnxruntime that maps a batch of images to one vector each."""

    path: Path
    session: "onnxruntime.InferenceSession"
    output: str  # name of the output
    preprocessing: Preprocessing

    @cached_property
    def digest(self) -> str:
        """What decides the vectors of an image: the files of the model and the preprocessing."""
        content = hashlib.sha256(self.path.read_bytes())
        for weights in sorted(self.path.parent.glob(f"{self.path.name}[._]*")):  # external data
            content.update(weights.read_bytes())
        content.update(json.dumps([self.output, asdict(self.preprocessing)]).encode())
        return content.hexdigest()[:32]

    @property
    def batch_size(self) -> int | None:
        """Images at a time, if the model takes just one number of them."""
        size = self.session.get_inputs()[0].shape[0]
        return size if isinstance(size, int) else None

    def encode(
        self, images: Sequence[Shaped[np.ndarray, "height width 3"]]
    ) -> Float[np.ndarray, "n D"]:
        """The vectors of images.

        Raises:
            CheckpointError: the model fails, or does not give one vector for each image.
        """
        (given,) = self.session.get_inputs()
        dtype = INPUT_TYPES[given.type]
        pixels = np.stack(images)
        batch = pixels if dtype == "uint8" else self.preprocessing.normalized(pixels).astype(dtype)
        if not _channels_last(given.shape):
            batch = batch.transpose(0, 3, 1, 2)
        size = self.batch_size or len(batch)
        filled = np.resize(batch, (-(-len(batch) // size) * size, *batch.shape[1:]))
        parts = [self._run(given.name, part) for part in np.split(filled, len(filled) // size)]
        return np.concatenate(parts)[: len(batch)].astype(np.float32)

    def _run(self, name: str, batch: np.ndarray) -> np.ndarray:
        try:
            (vectors,) = self.session.run([self.output], {name: np.ascontiguousarray(batch)})
        except Exception as error:  # onnxruntime has no base class of its own
            raise CheckpointError(f"{self.path}: {str(error).splitlines()[0]}") from error
        if vectors.ndim != 2 or len(vectors) != len(batch):
            raise CheckpointError(
                f"{self.path}: the output {self.output!r} has the shape {vectors.shape} for "
                f"{len(batch)} images, not one vector each; name another one by --output"
            )
        if not np.isfinite(vectors).all():
            raise CheckpointError(
                f"{self.path}: the output {self.output!r} holds NaN or infinite numbers; check the "
                "preprocessing, or use a model in float32"
            )
        return vectors


def load_image_encoder(model: Path, output: str = "") -> ImageEncoder:
    """An encoder from an ONNX file, or from a directory that holds one.

    `preprocessor_config.json` is read from the directory of the model, or from the one above it.

    Args:
        output: name of the output with one vector for each image; empty: the only output of that
            shape, or else `image_embeds`, `pooler_output` or the first one.

    Raises:
        InputError: Pillow or onnxruntime is not installed.
        CheckpointError: there is no such model, or it is no image encoder.
    """
    try:
        import onnxruntime
        import PIL  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"images need {error.name}, which is not installed; pip install 'jaxrec[images]'"
        ) from None
    path = _model_file(model)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=_providers(onnxruntime))
    except Exception as error:
        raise CheckpointError(f"{path}: {str(error).splitlines()[0]}") from error
    size = _input_size(path, session.get_inputs())
    return ImageEncoder(path, session, _output(path, session, output), _preprocessing(path, size))


def _providers(onnxruntime: Any) -> list[str]:
    """The accelerators that the installed onnxruntime knows, then the CPU."""
    return [p for p in onnxruntime.get_available_providers() if p != "AzureExecutionProvider"]


def _model_file(model: Path) -> Path:
    if model.is_file():
        return model
    files = sorted([*model.glob("*.onnx"), *model.glob("onnx/*.onnx")])
    usual = [path for path in files if path.name in ("model.onnx", "vision_model.onnx")]
    if len(usual) == 1:
        return usual[0]
    if len(files) == 1:
        return files[0]
    names = ", ".join(str(path.relative_to(model)) for path in files) or "none"
    raise CheckpointError(f"{model}: name one ONNX file; there is {names}")


def _channels_last(shape: Sequence[Any]) -> bool:
    return shape[1] != 3 and shape[3] == 3


def _input_size(path: Path, inputs: Sequence[Any]) -> tuple[int | None, int | None]:
    """Height and width of the input; None where the model takes any."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in INPUT_TYPES:
        described = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise CheckpointError(
            f"{path} takes {described}, not one batch of images; export the image encoder alone"
        )
    shape = inputs[0].shape
    channels = shape[3] if _channels_last(shape) else shape[1]
    if isinstance(channels, int) and channels != 3:
        raise CheckpointError(f"{path} takes images of {channels} channels, not red, green, blue")
    sides = shape[1:3] if _channels_last(shape) else shape[2:4]
    height, width = (side if isinstance(side, int) else None for side in sides)
    return height, width


def _output(path: Path, session: Any, wanted: str) -> str:
    outputs = session.get_outputs()
    names = [output.name for output in outputs]
    if wanted and wanted not in names:
        raise CheckpointError(f"{path} has no output {wanted!r}; it has {', '.join(names)}")
    flat = [output.name for output in outputs if len(output.shape) == 2]
    if not (wanted or flat):
        raise CheckpointError(
            f"{path} has no output with one vector for each image; it has {', '.join(names)}. "
            "Export it with pooling"
        )
    usual = [name for name in ("image_embeds", "pooler_output") if name in flat]
    return wanted or (usual or flat)[0]


def _preprocessing(path: Path, size: tuple[int | None, int | None]) -> Preprocessing:
    """The preprocessing of a model; raises a CheckpointError if it does not fit its input."""
    files = [directory / PREPROCESSING for directory in path.absolute().parents[:2]]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        height, width = (side or DEFAULT_SIZE for side in size)
        return Preprocessing((height, width), (height,) if height == width else (height, width))
    try:
        preprocessing = _from_config(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{file} is no preprocessing of images ({error})") from error
    height, width = preprocessing.size
    if size[0] not in (None, height) or size[1] not in (None, width):
        raise CheckpointError(
            f"{file} makes images of {height} x {width}, but {path.name} takes "
            f"{size[0]} x {size[1]}; they belong to different models"
        )
    return preprocessing


def _from_config(config: Mapping[str, Any]) -> Preprocessing:
    """The keys that Hugging Face's image processors write."""
    from PIL import Image

    size = config.get("size", DEFAULT_SIZE)
    crop = config.get("crop_size") if config.get("do_center_crop", False) else None
    if isinstance(size, Mapping) and "shortest_edge" in size:
        resize: tuple[int, ...] = (int(size["shortest_edge"]),)
    elif isinstance(size, int) and crop is not None:
        resize = (size,)
    else:
        resize = _sides(size)
    final = _sides(crop) if crop is not None else (resize[0], resize[-1])
    normalize = config.get("do_normalize", True)
    return Preprocessing(
        size=final,
        resize=resize if config.get("do_resize", True) else (),
        resample=Image.Resampling(config.get("resample", BICUBIC)).value,
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1,
        mean=tuple(map(float, config.get("image_mean", IMAGENET_MEAN))) if normalize else (0.0,),
        std=tuple(map(float, config.get("image_std", IMAGENET_STD))) if normalize else (1.0,),
    )


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))
