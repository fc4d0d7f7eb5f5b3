"""A Space: a picture and class names in, the picture with its classes in colour out.

The model lies in the folder `model/` beside this file, with the code that it needs, which runs here
(`trust_remote_code`): no other repository is asked. `python app.py` starts it on this machine.
"""

import os
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before the library reads it

import gradio as gr
import numpy as np
import torch
from PIL import Image
from transformers import pipeline


MODEL = Path(__file__).resolve().parent / "model"
LABELS = "cat, dog, sky|clouds, grass"
MAX_PIXELS = 40_000_000

segmenter = pipeline(
    "zero-shot-image-segmentation",
    model=str(MODEL),
    trust_remote_code=True,
    device="cuda" if torch.cuda.is_available() else "cpu",
)


def segment(picture: Image.Image | None, labels: str, threshold: float) -> tuple[Any, list[dict[str, Any]]]:
    """Return the picture with a mask per class, and class and score of each mask.

    Args:
        picture: RGB.
        labels: Class names between commas, synonyms between bars.
        threshold: Probability below which a pixel belongs to no class, 0 to 1.

    Raises:
        Error: If there is no picture, or the names are not good.
    """
    if picture is None:
        raise gr.Error("There is no picture yet.", print_exception=False)
    if picture.width * picture.height > MAX_PIXELS:
        text = f"The picture has more than {MAX_PIXELS // 10**6} million pixels; make it smaller."
        raise gr.Error(text, print_exception=False)
    try:
        answers = segmenter(picture, candidate_labels=labels, threshold=threshold or None)
    except (ValueError, TypeError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    masks = [((np.asarray(answer["mask"]) > 0).astype(float), answer["label"]) for answer in answers]
    return (picture, masks), [{"label": answer["label"], "score": answer["score"]} for answer in answers]


demo = gr.Interface(
    segment,
    [
        gr.Image(type="pil", label="Picture"),
        gr.Textbox(LABELS, label="Class names", info="Commas between classes, bars between synonyms."),
        gr.Slider(0, 1, 0, step=0.01, label="Threshold", info="Less probable pixels belong to no class."),
    ],
    [gr.AnnotatedImage(label="Classes"), gr.JSON(label="Scores")],
    title="LDVC: segment anything you can name",
    api_name="segment",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.queue(max_size=32).launch()
