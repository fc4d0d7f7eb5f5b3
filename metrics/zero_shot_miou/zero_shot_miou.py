"""Scores of generalised zero-shot semantic segmentation: mIoU of seen and unseen classes and their harmonic mean.

Only counts are kept, so memory depends on the number of class ids and not on the number of images:

    label maps -> pixel counts per (reference id, predicted id) -> confusion matrix -> scores
               -> connected components per id                   -> fragmentation

Protocol: all classes compete in one arg-max, counts run over the whole set, and only pixels with a reference label
count (the protocol of ZS3Net, SPNet and ZegCLIP). Scores are fractions, not percent.
"""

import contextlib
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph


_DESCRIPTION = """
Pixel accuracy, mIoU over seen and unseen classes, their harmonic mean (hIoU) and the fragmentation of predicted masks,
from a streaming confusion matrix.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of (height, width) integer maps (NumPy, PyTorch or PIL), class ids; sizes may differ.
    references: list of (height, width) integer maps of the same sizes.
    num_labels: number of classes; valid ids are 0 to num_labels - 1.
    unseen_ids: ids of the classes trained without masks.
    left_out_ids: ids of classes that compete, and count neither as seen nor as unseen.
    ignore_index: reference id of pixels that do not count, 255 unless given; as a prediction it means "no decision".
    across_processes: sum the counts over all processes of torch.distributed; all of them must then call `compute`.
Returns:
    pixel_accuracy, miou_seen, miou_unseen, hiou, miou: fractions, NaN where undefined.
    per_class_iou: list of num_labels fractions, NaN for classes absent from predictions and references.
    fragmentation: dict of four figures, see the metric card.
Examples:
    >>> metric = evaluate.load("metrics/zero_shot_miou")
    >>> metric.add_batch(predictions=[[[0, 0], [1, 1]]], references=[[[0, 0], [1, 255]]])
    >>> metric.compute(num_labels=2, unseen_ids=[1])["hiou"]
    1.0
"""

_CITATION = """
@article{zhang2024ldvc,
  title={Language-Driven Visual Consensus for Zero-Shot Semantic Segmentation},
  author={Zhang, Zicheng and Zhang, Tong and Zhu, Yi and Liu, Jianzhuang and Liang, Xiaodan and Ye, Qixiang
          and Ke, Wei},
  journal={arXiv preprint arXiv:2403.08426},
  year={2024}
}
"""

DEFAULT_IGNORE_INDEX = 255
SMALL_COMPONENT_SHARE = 0.001  # of the image's pixels; smaller components are called fragments
MAX_ID_RANGE = 2**20  # ids that lie closer together are told apart by a table, others by sorting
MAX_TABLE_IDS = 1024  # so many ids in an image are counted in a table of their square (8 MB), more by sorting


class Fragments(NamedTuple):
    """Connected components of one label map: `classes` present, `components`, `small_components` among them."""

    classes: int
    components: int
    small_components: int


def count_confusion(
    prediction: Any, reference: Any, num_labels: int, ignore_index: int = DEFAULT_IGNORE_INDEX
) -> np.ndarray:
    """Count the confusion matrix of one image.

    Args:
        prediction: (height, width) integer map of class ids; `ignore_index` means "no decision".
        reference: (height, width) integer map of class ids; pixels with `ignore_index` do not count.
        num_labels: Number of classes.
        ignore_index: Id outside the vocabulary, see above.

    Returns:
        (num_labels, num_labels + 1) int64 pixel counts; rows are reference classes, columns predicted classes, and the
        last column holds the pixels of "no decision".
    """
    num_labels, ignore_index = _as_id(num_labels, "num_labels"), _as_id(ignore_index, "ignore_index")
    return _confusion_from_pairs(_count_pairs(*_as_pair(prediction, reference)), num_labels, ignore_index)


def scores_from_confusion(
    confusion: np.ndarray, unseen_ids: Iterable[int] = (), left_out_ids: Iterable[int] = ()
) -> dict[str, Any]:
    """Compute all scores from a confusion matrix.

    Args:
        confusion: (num_labels, num_labels) or (num_labels, num_labels + 1) pixel counts as from `count_confusion`,
            summed over images.
        unseen_ids: Ids of the classes trained without masks.
        left_out_ids: Ids of classes that compete, and count neither as seen nor as unseen: those that a smaller share
            of seen classes left untrained.

    Returns:
        `pixel_accuracy`, `miou_seen`, `miou_unseen`, `hiou`, `miou` as floats and `per_class_iou` as a list of
        `num_labels` floats, all fractions; with `left_out_ids`, their mean as `miou_left_out`. Classes without a pixel
        in predictions and references are NaN and left out of the means. A group of classes that no reference pixel
        belongs to has no mean: it is NaN, whatever was predicted, and so is `hiou` if it is the seen or unseen one.

    Raises:
        ValueError: If the matrix holds no pixel, or `unseen_ids` and `left_out_ids` are not distinct class ids.
    """
    num_labels = len(confusion)
    unseen_ids = _check_ids("unseen_ids", unseen_ids, num_labels)
    left_out_ids = _check_ids("left_out_ids", left_out_ids, num_labels, unseen_ids)
    labelled = int(confusion.sum())
    if labelled == 0:
        raise ValueError("no labelled pixel was counted: add predictions and references before asking for scores")
    true_positives = np.diagonal(confusion)
    union = confusion.sum(axis=1) + confusion[:, :num_labels].sum(axis=0) - true_positives
    per_class_iou = np.divide(true_positives, union, out=np.full(num_labels, np.nan), where=union > 0)
    is_unseen, is_left_out = (np.isin(np.arange(num_labels), ids) for ids in (unseen_ids, left_out_ids))
    is_labelled = confusion.sum(axis=1) > 0
    miou_seen, miou_unseen, miou_left_out = (
        _mean_of_present(per_class_iou[group]) if is_labelled[group].any() else math.nan
        for group in (~is_unseen & ~is_left_out, is_unseen, is_left_out)
    )
    return {
        "pixel_accuracy": int(true_positives.sum()) / labelled,
        "miou_seen": miou_seen,
        "miou_unseen": miou_unseen,
        "hiou": _harmonic_mean(miou_seen, miou_unseen),
        "miou": _mean_of_present(per_class_iou),
        "per_class_iou": per_class_iou.tolist(),
        **({"miou_left_out": miou_left_out} if left_out_ids else {}),
    }


def count_fragments(label_map: Any, ignore_index: int = DEFAULT_IGNORE_INDEX) -> Fragments:
    """Count the 8-connected components of every class in one label map.

    Args:
        label_map: (height, width) integer map of class ids.
        ignore_index: Id whose pixels belong to no class.

    Returns:
        Numbers of classes present, of components, and of components under 0.1 % of the image.
    """
    ignore_index = _as_id(ignore_index, "ignore_index")
    components = _count_components(_as_label_map(label_map, "label_map"))
    return _sum_components(components, lambda class_id: class_id != ignore_index)


class _Counts:
    """Everything the metric keeps; its size depends on the ids that occur, not on the number of images."""

    def __init__(self) -> None:
        self.num_images = 0
        self.pairs: Counter = Counter()  # (reference id, predicted id) -> pixels
        self.predicted: dict[int, np.ndarray] = {}  # id -> images with it, components, small components
        self.reference: dict[int, np.ndarray] = {}

    def add_image(self, prediction: np.ndarray, reference: np.ndarray, has_fragmentation: bool) -> None:
        self.num_images += 1
        self.pairs.update(_count_pairs(prediction, reference))
        if not has_fragmentation:
            return
        _add_arrays(self.predicted, _count_components(prediction))
        _add_arrays(self.reference, _count_components(reference))

    def add_counts(self, other: dict[str, Any]) -> None:
        # `other` is vars(counts): plain containers travel between processes whichever way each one loaded this module
        self.num_images += other["num_images"]
        self.pairs.update(other["pairs"])
        _add_arrays(self.predicted, other["predicted"])
        _add_arrays(self.reference, other["reference"])


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ZeroShotMIoU(evaluate.Metric):
    """Streaming scores of generalised zero-shot semantic segmentation.

    Args:
        num_labels: Number of classes; may be given here or to `compute`.
        ignore_index: Id of uncounted pixels; may be given here or to `compute`.
        fragmentation: Count connected components too, which takes most of the time.
        **kwargs: As for every `evaluate.Metric`.

    Raises:
        ValueError: If `num_process` of `evaluate` is used; sum over processes with `across_processes` instead.
    """

    def __init__(
        self,
        *args: Any,
        num_labels: int | None = None,
        ignore_index: int | None = None,
        fragmentation: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.num_process != 1:
            raise ValueError(
                f"num_process={self.num_process}: load the metric without it in every process and call "
                "compute(..., across_processes=True) instead"
            )
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.fragmentation = fragmentation
        self._counts = _Counts()

    def __len__(self) -> int:
        """Return the number of images counted since the last `compute`."""
        return self._counts.num_images

    def _info(self) -> evaluate.MetricInfo:
        label_maps = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": label_maps, "references": label_maps}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Count one image.

        Args:
            prediction: (height, width) integer map of class ids (NumPy, PyTorch, PIL or nested lists).
            reference: (height, width) integer map of class ids.
        """
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Iterable[Any] = (), references: Iterable[Any] = ()) -> None:
        """Count a batch of images; nothing is counted when one of them is refused.

        Args:
            predictions: (height, width) integer maps of class ids, one per image; sizes may differ between images.
            references: As many maps of the same sizes.
        """
        for prediction, reference in _as_pairs(predictions, references):
            self._counts.add_image(prediction, reference, self.fragmentation)

    def compute(
        self,
        *,
        predictions: Iterable[Any] | None = None,
        references: Iterable[Any] | None = None,
        num_labels: int | None = None,
        unseen_ids: Iterable[int] = (),
        left_out_ids: Iterable[int] = (),
        ignore_index: int | None = None,
        across_processes: bool = False,
    ) -> dict[str, Any]:
        """Return the scores of everything counted, then start anew.

        After an error the counts are kept, so that the call can be repeated with other arguments.

        Args:
            predictions: Further label maps, counted before scoring.
            references: As many label maps of the same sizes.
            num_labels: Number of classes, unless given at loading.
            unseen_ids: Ids of the classes trained without masks.
            left_out_ids: Ids of classes that count neither as seen nor as unseen.
            ignore_index: Id of uncounted pixels; the one given at loading or 255 unless given.
            across_processes: Sum the counts over all processes of `torch.distributed`, where it is initialised. Every
                process must make this call, also one without images, and gets the same result.

        Returns:
            The scores of `scores_from_confusion` and, unless turned off at loading, `fragmentation`; see the metric
            card.

        Raises:
            TypeError: If `num_labels` is given neither here nor at loading, or a number is no integer.
            ValueError: If no ignore id is given and the default is also a class.
        """
        num_labels = self.num_labels if num_labels is None else num_labels
        if num_labels is None:
            raise TypeError("num_labels is missing: give compute() the number of classes")
        ignore_index = self.ignore_index if ignore_index is None else ignore_index
        if ignore_index is None:
            ignore_index = DEFAULT_IGNORE_INDEX
            if _as_id(num_labels, "num_labels") > ignore_index:
                raise ValueError(
                    f"with num_labels={num_labels}, the default ignore_index {ignore_index} is also a class: "
                    "give ignore_index explicitly, for example -1"
                )
        num_labels, ignore_index = _as_id(num_labels, "num_labels"), _as_id(ignore_index, "ignore_index")
        counts = _Counts()
        counts.add_counts(vars(self._counts))
        for prediction, reference in _as_pairs(predictions, references):
            counts.add_image(prediction, reference, self.fragmentation)
        if across_processes:
            counts = _sum_over_processes(counts)
        confusion = _confusion_from_pairs(counts.pairs, num_labels, ignore_index)
        scores = scores_from_confusion(confusion, unseen_ids, left_out_ids)
        if self.fragmentation:
            scores["fragmentation"] = _fragmentation(counts, num_labels, ignore_index)
        self._counts = _Counts()
        return scores


def _as_pairs(predictions: Iterable[Any] | None, references: Iterable[Any] | None) -> list[tuple]:
    """Convert two lists of label maps to pairs of arrays.

    Raises:
        ValueError: If the numbers of maps differ.
    """
    predictions = [] if predictions is None else list(predictions)
    references = [] if references is None else list(references)
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references: give one per image")
    return [_as_pair(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]


def _as_pair(prediction: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    """Convert both maps to integer arrays of one shape, (height, width).

    Raises:
        ValueError: If the shapes differ.
    """
    prediction, reference = _as_label_map(prediction, "prediction"), _as_label_map(reference, "reference")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction of shape {prediction.shape} for a reference of shape {reference.shape}: bring predictions to "
            "the size of the reference, as post_process_semantic_segmentation does with target_sizes"
        )
    return prediction, reference


def _as_label_map(label_map: Any, role: str) -> np.ndarray:
    """Convert a NumPy, PyTorch, PIL or nested-list label map to an array of the narrowest integers, (height, width).

    Raises:
        ValueError: If it is not two-dimensional.
        TypeError: If its values are not integers.
    """
    if hasattr(label_map, "detach"):  # a PyTorch tensor, perhaps on an accelerator
        label_map = label_map.detach().cpu()
    label_map = np.asarray(label_map)
    if label_map.ndim != 2:
        raise ValueError(f"{role} of shape {label_map.shape}: give one (height, width) map of class ids per image")
    if label_map.dtype.kind not in ("b", "i", "u"):
        raise TypeError(f"{role} of dtype {label_map.dtype}: give class ids as integers, for example logits.argmax(0)")
    if label_map.dtype == np.uint8:
        return label_map
    if label_map.size and label_map.min() >= 0 and label_map.max() <= np.iinfo(np.uint8).max:
        return label_map.astype(np.uint8)
    return label_map.astype(np.int64)


def _find_runs(*label_maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut maps of one shape into runs: stretches within a row on which none of them changes.

    A map is far fewer runs than pixels, so that everything below counts runs.

    Returns:
        (num_runs,) flat index of the first pixel of each, and its length in pixels.
    """
    is_start = np.zeros(label_maps[0].size, dtype=bool)
    for label_map in label_maps:
        ids = label_map.ravel()
        is_start[1:] |= ids[1:] != ids[:-1]
    is_start[:: label_maps[0].shape[1]] = True
    first = np.flatnonzero(is_start)
    return first, np.diff(first, append=is_start.size)


def _count_pairs(prediction: np.ndarray, reference: np.ndarray) -> Counter:
    """Count the pixels of every pair (reference id, predicted id) that occurs."""
    if prediction.size == 0:
        return Counter()
    first, lengths = _find_runs(prediction, reference)
    ids, prediction, reference = _compact(prediction.ravel()[first], reference.ravel()[first])
    codes = reference * len(ids) + prediction
    if len(ids) <= MAX_TABLE_IDS:
        pixels = np.bincount(codes, lengths)
        codes = np.flatnonzero(pixels)
        pixels = pixels[codes]
    else:
        codes, index = np.unique(codes, return_inverse=True)
        pixels = np.bincount(index, lengths)
    pairs = zip(ids[codes // len(ids)].tolist(), ids[codes % len(ids)].tolist(), strict=True)
    return Counter(dict(zip(pairs, pixels.astype(np.int64).tolist(), strict=True)))


def _compact(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replace the ids of runs by indices into a short list of ids, so that pairs can be counted in a table.

    Returns:
        (num_ids,) ids and both (num_runs,) arrays as int64 indices into them.
    """
    both = np.stack([prediction, reference]).astype(np.int64)
    low, high = int(both.min()), int(both.max())
    if high - low < MAX_ID_RANGE:
        both -= low
        is_present = np.bincount(both.ravel()) > 0
        return np.flatnonzero(is_present) + low, *(np.cumsum(is_present) - 1)[both]
    ids, both = np.unique(both, return_inverse=True)
    return ids, *both.reshape(2, -1)


def _confusion_from_pairs(pairs: Counter, num_labels: int, ignore_index: int) -> np.ndarray:
    """Arrange counted pairs as the (num_labels, num_labels + 1) matrix of `count_confusion`.

    Raises:
        ValueError: If an id that counts lies outside the vocabulary.
    """
    confusion = np.zeros((num_labels, num_labels + 1), dtype=np.int64)
    for (reference_id, predicted_id), pixels in pairs.items():
        if reference_id == ignore_index:
            continue
        if not 0 <= reference_id < num_labels:
            raise ValueError(
                f"reference id {reference_id} ({pixels} pixels) is neither a class (0 to {num_labels - 1}) nor "
                f"ignore_index {ignore_index}: map the ids of the data set, or pass another num_labels or ignore_index"
            )
        if predicted_id != ignore_index and not 0 <= predicted_id < num_labels:
            raise ValueError(
                f"predicted id {predicted_id} ({pixels} labelled pixels) is neither a class (0 to {num_labels - 1}) "
                f"nor ignore_index {ignore_index}: for 'no decision' predict ignore_index, or pass another num_labels"
            )
        confusion[reference_id, num_labels if predicted_id == ignore_index else predicted_id] += pixels
    return confusion


def _count_components(label_map: np.ndarray) -> dict[int, np.ndarray]:
    """Count 8-connected components of every id, all ids at once, as the components of a graph of runs that touch.

    Returns:
        Per id the (3,) int64 counts: 1 image, components, components under 0.1 % of the image.
    """
    if label_map.size == 0:
        return {}
    first, lengths = _find_runs(label_map)
    touching = _touching_runs(label_map, first)
    graph = sparse.coo_array((np.ones(len(touching[0]), dtype=bool), touching), shape=(len(first), len(first)))
    num_components, component = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(component, weights=lengths)
    component_ids = np.empty(num_components, dtype=np.int64)
    component_ids[component] = label_map.ravel()[first]
    ids, index = np.unique(component_ids, return_inverse=True)
    is_small = sizes < SMALL_COMPONENT_SHARE * label_map.size
    counts = np.stack([np.ones(len(ids)), np.bincount(index), np.bincount(index, weights=is_small)], axis=1)
    return dict(zip(ids.tolist(), counts.astype(np.int64), strict=True))


def _touching_runs(label_map: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of runs of one id in neighbouring rows that share a side or a corner.

    Of two such runs, one has its first pixel straight above or below the other, or one step to the right of its end.

    Returns:
        Two (num_pairs,) arrays of runs; a pair may occur more than once.
    """
    ids, width = label_map.ravel(), label_map.shape[1]
    has_left = first % width > 0
    runs, neighbours = [], []
    for step, is_inside in ((-width, True), (width, True), (-width - 1, has_left), (width - 1, has_left)):
        neighbour = first + step
        candidates = np.flatnonzero(is_inside & (neighbour >= 0) & (neighbour < ids.size))
        run = candidates[ids[first[candidates]] == ids[neighbour[candidates]]]
        runs.append(run)
        neighbours.append(neighbour[run])
    return np.concatenate(runs), np.searchsorted(first, np.concatenate(neighbours), side="right") - 1


def _sum_components(components: dict[int, np.ndarray], is_class: Callable[[int], bool]) -> Fragments:
    """Sum per-id component counts over the ids that are classes."""
    counts = [count for class_id, count in components.items() if is_class(class_id)]
    return Fragments(*np.sum(counts, axis=0, dtype=np.int64).tolist()) if counts else Fragments(0, 0, 0)


def _fragmentation(counts: _Counts, num_labels: int, ignore_index: int) -> dict[str, float]:
    """Compute the four fragmentation figures; NaN where there is no component."""

    def is_class(class_id: int) -> bool:
        return 0 <= class_id < num_labels and class_id != ignore_index

    figures = {}
    for prefix, components in (("", counts.predicted), ("reference_", counts.reference)):
        total = _sum_components(components, is_class)
        figures[f"{prefix}components_per_class_and_image"] = _ratio(total.components, total.classes)
        figures[f"{prefix}small_component_share"] = _ratio(total.small_components, total.components)
    return figures


def _sum_over_processes(counts: _Counts) -> _Counts:
    """Sum counts over all processes of `torch.distributed`; without it, return them unchanged."""
    try:
        import torch.distributed as dist
    except ImportError:  # the metric itself needs no PyTorch
        return counts
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, vars(counts))
    total = _Counts()
    for other in gathered:
        total.add_counts(other)
    return total


def _add_arrays(total: dict[int, np.ndarray], added: dict[int, np.ndarray]) -> None:
    for class_id, count in added.items():
        total[class_id] = total.get(class_id, 0) + count


def _check_ids(name: str, ids: Iterable[int], num_labels: int, taken: Iterable[int] = ()) -> list[int]:
    """Return the ids as a list.

    Raises:
        ValueError: If an id occurs twice, is taken or is no class.
    """
    ids = [_as_id(class_id, name) for class_id in ids]
    wrong = [class_id for class_id in ids if not 0 <= class_id < num_labels]
    if wrong or len(set(ids)) < len(ids):
        raise ValueError(f"{name} {ids}: give distinct class ids from 0 to {num_labels - 1}")
    if twice := sorted(set(ids) & set(taken)):
        raise ValueError(f"{name} {ids}: {twice} are unseen_ids as well; give each id in one of the two lists")
    return ids


def _as_id(value: Any, name: str) -> int:
    """Return an integer of any kind as a Python one.

    Raises:
        TypeError: If it is no integer: 1.5, "255" and the truth values of a mask are none.
    """
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{name}: {value!r} is a {type(value).__name__}, give an integer")


def _mean_of_present(ious: np.ndarray) -> float:
    present = ious[~np.isnan(ious)]
    return float(present.mean()) if present.size else math.nan


def _harmonic_mean(first: float, second: float) -> float:
    """Return 2ab / (a + b); 0 when both are 0, NaN when one is NaN."""
    total = first + second
    return 0.0 if total == 0 else 2 * first * second / total


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan
