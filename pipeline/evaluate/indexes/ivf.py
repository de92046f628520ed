"""Inverted lists: cluster the gallery, look into the nearest clusters only. Whole vectors, 8 bits a number, or codes.

From a million rows on. Lists that run dry answer position -1.
"""

from typing import Any, ClassVar

from pipeline.evaluate.indexes.faiss_index import FaissIndex
from pipeline.evaluate.indexes.faiss_module import gpu_clustering, need_faiss

PROBES = 8  # at 100k × 512: recall@10 0.973 with one probe, 1.0 with eight
TRAINING_ROWS_PER_LIST = 64
NUMBERS_PER_CODE = 4
"""Neighbouring numbers of a vector that a byte of a product code stands for; fewer where the width does not divide."""
CODE_BITS = 8


class ListsIndex(FaissIndex):
    """Approximate search in ≈ 4·√N lists, `PROBES` of them looked into unless it is tuned."""

    exact = False
    effort_name = "nprobe"
    most_training_rows: ClassVar[int] = 2**20

    @classmethod
    def lists(cls, rows: int) -> int:
        """Return the number of lists for so many rows."""
        return max(1, min(int(4 * rows**0.5), rows // TRAINING_ROWS_PER_LIST))

    @classmethod
    def training_rows(cls, rows: int) -> int:
        """Return 64 rows a list, but enough for the codes, and a million at most."""
        return max(min(rows, 2**14), min(cls.lists(rows) * TRAINING_ROWS_PER_LIST, cls.most_training_rows))

    @classmethod
    def empty(cls, width: int, rows: int, seed: int, training_rows: int) -> Any:
        """Return the lists, untrained; clustered on a GPU where faiss has one."""
        faiss = need_faiss(f"index {cls.name}")
        quantiser = faiss.IndexFlatIP(width)
        index = cls._lists_of(faiss, quantiser, width, cls.lists(rows), training_rows)
        quantiser.this.disown()
        index.own_fields = True
        index.cp.seed = seed + 1  # zero would mean "draw one"
        index.cp.min_points_per_centroid = 1
        index.nprobe = min(PROBES, index.nlist)
        return gpu_clustering(faiss, index, width)

    @classmethod
    def _lists_of(cls, faiss: Any, quantiser: Any, width: int, lists: int, training_rows: int) -> Any:
        raise NotImplementedError

    @property
    def effort(self) -> int:
        """Lists that are looked into."""
        return int(self._index.nprobe)

    @property
    def most_effort(self) -> int:
        """All lists."""
        return int(self._index.nlist)

    def set_effort(self, effort: int) -> None:
        """Look into so many lists."""
        self._index.nprobe = effort

    def build_settings(self) -> dict[str, Any]:
        """Return lists and the bytes of a vector in them."""
        return {"lists": int(self._index.nlist), "bytes_a_row": int(self._index.code_size)}


class IVFIndex(ListsIndex):
    """Lists of whole vectors (`IndexIVFFlat`)."""

    name = "ivf"

    @classmethod
    def _lists_of(cls, faiss: Any, quantiser: Any, width: int, lists: int, training_rows: int) -> Any:
        return faiss.IndexIVFFlat(quantiser, width, lists, faiss.METRIC_INNER_PRODUCT)


class SQ8Index(ListsIndex):
    """Lists of vectors with 8 bits a number (`IndexIVFScalarQuantizer`): a quarter of the memory."""

    name = "sq8"
    true_scores = False

    @classmethod
    def _lists_of(cls, faiss: Any, quantiser: Any, width: int, lists: int, training_rows: int) -> Any:
        bits = faiss.ScalarQuantizer.QT_8bit
        return faiss.IndexIVFScalarQuantizer(quantiser, width, lists, bits, faiss.METRIC_INNER_PRODUCT)


class IVFPQIndex(ListsIndex):
    """Lists of product codes (`IndexIVFPQ`): a sixteenth of the memory; the codes, not the effort, bound the recall."""

    name = "ivfpq"
    true_scores = False

    @classmethod
    def _lists_of(cls, faiss: Any, quantiser: Any, width: int, lists: int, training_rows: int) -> Any:
        each = next(size for size in range(NUMBERS_PER_CODE, 0, -1) if width % size == 0)
        bits = max(1, min(CODE_BITS, training_rows.bit_length() - 1))  # 2^bits centroids need as many rows
        index = faiss.IndexIVFPQ(quantiser, width, lists, width // each, bits, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.min_points_per_centroid = 1
        return index
