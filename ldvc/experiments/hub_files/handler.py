"""What Inference Endpoints call: a picture and class names in, a mask per class that was found out.

    {"inputs": "<a picture's file in base64>", "parameters": {"candidate_labels": ["cat", "sky"], "threshold": 0.3}}

Parameters are those of the pipeline "zero-shot-image-segmentation"; without `candidate_labels`, the model's own
vocabulary is asked for. The code of this folder runs in the endpoint, as its owner decided when it was made from it.
"""

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from transformers import pipeline


PARAMETERS = ("candidate_labels", "negative_labels", "background", "threshold", "top_k", "window", "stride")
PARAMETERS += ("short_side", "value_range")
MAX_PIXELS = 40_000_000  # of one picture: a request must not take the memory of all others


class EndpointHandler:
    """A model that answers requests.

    Args:
        path: Folder with the model, its processor and its code.
    """

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = pipeline("zero-shot-image-segmentation", model=path, trust_remote_code=True, device=device)

    def __call__(self, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Segment one picture.

        Args:
            data: `inputs`, a picture's file in base64 or as bytes, or an opened picture, which the toolkit makes of a
                body that is one; `parameters`, any of `PARAMETERS`.

        Returns:
            A list of `{"label", "score", "mask"}`, best score first: the mask a PNG in base64, 255 inside and 0
            outside, of the size of the upright picture.

        Raises:
            ValueError: If there is no picture that can be read, a parameter is unknown, or one is out of range.
        """
        parameters = dict(data.get("parameters") or {})
        unknown = [name for name in parameters if name not in PARAMETERS]
        if unknown:
            raise ValueError(f"parameter {unknown[0]!r} is unknown; there are {', '.join(PARAMETERS)}.")
        answers = self.pipeline(read_picture(data.get("inputs")), **parameters)
        return [{**answer, "mask": encode_picture(answer["mask"])} for answer in answers]


def read_picture(inputs: Any) -> Image.Image:
    """Open a picture; text is never taken for a path or an address.

    Raises:
        ValueError: If it is none, or too large.
    """
    if isinstance(inputs, str):
        try:
            inputs = base64.b64decode(inputs.partition("base64,")[2] or inputs, validate=True)
        except binascii.Error as error:
            raise ValueError("`inputs` is text, but no base64; send the bytes of a picture's file so.") from error
    if isinstance(inputs, (bytes, bytearray)):
        try:
            inputs = Image.open(io.BytesIO(inputs))
        except OSError as error:
            raise ValueError("`inputs` holds no picture that can be read; send PNG, JPEG or WebP.") from error
    if not isinstance(inputs, Image.Image):
        raise ValueError(f"`inputs` is {type(inputs).__name__}; send a picture's file, in base64 within JSON.")
    if inputs.width * inputs.height > MAX_PIXELS:
        raise ValueError(
            f"the picture has {inputs.width} x {inputs.height} pixels; send at most {MAX_PIXELS // 10**6} million."
        )
    return inputs


def encode_picture(picture: Image.Image) -> str:
    """Return a picture as PNG in base64."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
