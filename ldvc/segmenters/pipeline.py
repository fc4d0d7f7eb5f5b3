"""The pipeline "zero-shot-image-segmentation" for CLIP and CLIPSeg folders and ids, beside LDVC's.

The task is registered by the files that ship with LDVC's checkpoints, which know no other model; here, where the whole
package is at hand, it learns to load the others too.
"""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY

from ldvc.model.pipeline_ldvc import TASK, ZeroShotImageSegmentationPipeline


__all__ = ["AnySegmenter", "ZeroShotImageSegmentationPipeline"]


HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class AnySegmenter:
    """What the library's loader calls where LDVC's Auto class does not know a configuration."""

    @classmethod
    def from_pretrained(cls, model: str, **options: Any) -> Any:
        """Load a CLIP without training, or a CLIPSeg.

        Args:
            model: Folder or Hub id.
            options: Of the library's `from_pretrained`.

        Raises:
            ValueError: If it is neither.
        """
        place = {name: value for name, value in options.items() if name in HUB_OPTIONS}
        kind = PreTrainedConfig.get_config_dict(model, **place)[0].get("model_type")
        if kind == "clipseg":
            from ldvc.segmenters.clipseg import CLIPSegSegmenter

            return CLIPSegSegmenter.from_pretrained(model, **options)
        if kind == "clip":
            from transformers import CLIPModel

            from ldvc.segmenters.training_free import TrainingFreeCLIP

            return TrainingFreeCLIP(CLIPModel.from_pretrained(model, **options).eval())
        raise ValueError(f"{model!r} holds a {kind!r} model; give LDVC, a CLIPModel or a CLIPSeg.")


if AnySegmenter not in PIPELINE_REGISTRY.supported_tasks[TASK]["pt"]:
    PIPELINE_REGISTRY.supported_tasks[TASK]["pt"] += (AnySegmenter,)
