"""Run an exported model on image files; this file needs numpy, pillow and onnxruntime alone.

    python run.py photo.jpg more/*.png --output out

It stands beside model.onnx, in which class names and sizes are. From Python:

    from run import Model
    result = Model("model.onnx")(PIL.Image.open("photo.jpg"))
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

__all__ = ["Model"]

# Others may be there, such as TensorRT, but build an engine for each size of image anew.
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")

_KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Model:
    """An exported model.

    Args:
        path: of model.onnx.
        providers: what onnxruntime computes on; None: a GPU of CUDA if there is one, else the CPU.
    """

    def __init__(self, path: str | Path, providers: list[str] | None = None) -> None:
        available = onnxruntime.get_available_providers()
        providers = providers or [name for name in _PROVIDERS if name in available]
        self.session = onnxruntime.InferenceSession(str(path), providers=providers)
        about = json.loads(self.session.get_modelmeta().custom_metadata_map["gmf_platform"])
        self.task: str = about["task"]
        self.class_names: list[str] = about["class_names"]
        self.colours = np.array(about["colours"], np.uint8)
        self.resizing: dict[str, Any] = about["resizing"]
        self.min_score: float = about["min_score"]
        self.least: int = about["least"]

    def __call__(self, image: Image.Image) -> dict[str, Any]:
        """Predict.

        Returns:
            Of classification ``classes``, the five most probable as (name, probability). Of
            segmentation ``labels`` uint8 (H, W) at the image's size. Of detection ``objects``:
            dicts of ``name``, ``score`` and ``box``, left, top, right, bottom in the image's pixels.
        """
        image = ImageOps.exif_transpose(image).convert("RGB")
        pixels = self.prepared(np.asarray(image))
        if min(pixels.shape[:2]) < self.least:
            height, width = pixels.shape[:2]
            raise ValueError(
                f"{width} x {height} after resizing; the model needs {self.least} pixels a side"
            )
        names = [output.name for output in self.session.get_outputs()]
        arrays = self.session.run(None, {"images": pixels[None]})
        found = {name: array[0] for name, array in zip(names, arrays, strict=True)}
        match self.task:
            case "classification":
                return {"classes": self._best(found["probabilities"])}
            case "segmentation":
                whole = Image.fromarray(found["labels"])
                return {"labels": np.asarray(whole.resize(image.size, Image.Resampling.NEAREST))}
            case _:
                scale = np.array(image.size * 2) / (pixels.shape[1::-1] * 2)
                return {"objects": self._objects(found, scale)}

    def prepared(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image (H, W, 3) at the size that the model was evaluated at."""
        sides = self.resizing
        height, width = image.shape[:2]
        if "centre" in sides:
            short, side = min(height, width), sides["centre"]
            height, width = (int(sides["short"] * n / short) for n in (height, width))
            picture = Image.fromarray(image).resize(
                (width, height), _KERNELS[sides["interpolation"]]
            )
            left, top = (round((n - side) / 2) for n in (width, height))
            return np.asarray(picture.crop((left, top, left + side, top + side)))
        if "long" in sides:
            longest, shortest = max(height, width), min(height, width)
            factor = min(sides["long"] / longest, sides["short"] / shortest)
            image = _resized(image, int(height * factor + 0.5), int(width * factor + 0.5))
        return image

    def _best(self, probabilities: NDArray[np.float32]) -> list[tuple[str, float]]:
        order = np.argsort(-probabilities, kind="stable")[:5]
        return [(self.class_names[i], float(probabilities[i])) for i in order]

    def _objects(
        self, found: dict[str, NDArray[Any]], scale: NDArray[np.float64]
    ) -> list[dict[str, Any]]:
        columns = (found[name][: int(found["count"])] for name in ("labels", "scores", "boxes"))
        return [
            {
                "name": self.class_names[label],
                "score": round(float(score), 4),
                "box": (box * scale).round(2).tolist(),
            }
            for label, score, box in zip(*columns, strict=True)
            if score >= self.min_score
        ]


def _resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """What OpenCV's cv2.resize gives, to the last bit, as in training; Pillow's is antialiased.

    It is bilinear with weights of 11 bits, first along rows and then along columns, where the
    products lose 4 and 16 bits before they are added and 2 after.
    """
    if image.shape[:2] == (height, width):
        return image
    mixed = image.astype(np.int64)
    for axis, length in ((1, width), (0, height)):
        before = image.shape[axis]
        place = ((np.arange(length) + 0.5) / (length / before) - 0.5).astype(np.float32)
        first = np.floor(place).astype(int)
        share = np.rint(2048 * (place - first)).astype(int)
        share = share.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        one, other = (mixed.take(np.clip(first + n, 0, before - 1), axis) for n in (0, 1))
        if axis == 1:
            mixed = one * (2048 - share) + other * share
        else:
            parts = ((one >> 4) * (2048 - share) >> 16) + ((other >> 4) * share >> 16)
            mixed = (parts + 2) >> 2
    return mixed.astype(np.uint8)


def _draw_objects(image: Image.Image, objects: list[dict[str, Any]], model: Model) -> Image.Image:
    """The image with boxes, names and scores."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(10, round(min(image.size) / 40)))
    for found in objects:
        colour = tuple(model.colours[model.class_names.index(found["name"])].tolist())
        text, (left, top) = f"{found['name']} {found['score']:.2f}", found["box"][:2]
        draw.rectangle(found["box"], outline=colour, width=max(1, round(min(image.size) / 300)))
        shade = draw.textbbox((left, top), text, font=font)
        draw.rectangle(shade, fill=colour)
        draw.text((left, top), text, fill="black" if sum(colour) > 3 * 128 else "white", font=font)
    return image


def _targets(path: Path, output: Path) -> tuple[Path, Path]:
    """Where the labels and the picture of an image go."""
    return output / f"{path.stem}.png", output / f"{path.stem}_overlay.jpg"


def _write(path: Path, result: dict[str, Any], output: Path, model: Model) -> None:
    """Write pictures of a result, and in the place of labels put what is to be printed."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    plain, picture = _targets(path, output)
    if "labels" in result:
        labels = result.pop("labels")
        whole = Image.fromarray(labels)
        whole.putpalette(model.colours.tobytes())
        whole.save(plain)
        Image.blend(image, whole.convert("RGB"), 0.55).save(picture)
        counts = np.bincount(labels.ravel()) / labels.size
        named = zip(model.class_names, counts, strict=False)
        result["shares"] = {name: round(float(share), 4) for name, share in named if share}
    if "objects" in result:
        _draw_objects(image, result["objects"], model).save(picture)


def main() -> int:
    """Predict files, print a line of json for each, and write label maps and pictures.

    Returns:
        The exit code: 1 if a file could not be predicted.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("model.onnx"))
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for pictures")
    parser.add_argument("--min-score", type=float, help="of objects (default: as exported)")
    options = parser.parse_args()
    if len({path.stem for path in options.images}) < len(options.images):
        parser.error("two images have the same name, so that one would replace the other's picture")
    sources = {path.resolve() for path in options.images}
    written = (target for path in options.images for target in _targets(path, options.output))
    for target in written:
        if target.resolve() in sources:
            parser.error(f"{target} is one of the images: name another folder with --output")
    model = Model(options.model)
    if options.min_score is not None:
        model.min_score = options.min_score
    options.output.mkdir(parents=True, exist_ok=True)
    code = 0
    for path in options.images:
        try:
            with Image.open(path) as image:
                result = model(image)
        except (OSError, ValueError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            code = 1
            continue
        _write(path, result, options.output, model)
        print(json.dumps({"file": str(path), **result}))
    return code


if __name__ == "__main__":
    sys.exit(main())
