"""Names of datasets that mean something on other machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class DataSource:
    """Name of a dataset, without the folders of the machine that it was loaded on.

    Attributes:
        name: File name, or id on the Hub; empty if it is unknown.
        on_hub: True if `name` is an id on the Hub.
        split: Split of a dataset on the Hub, or its slice.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_list([{"chosen": "Yes.", "rejected": "No."}])
        >>> rows.info.dataset_name = "/data/pairs.jsonl"
        >>> DataSource.of(rows)
        DataSource(name='pairs.jsonl', on_hub=False, split='')
    """

    name: str = ""
    on_hub: bool = False
    split: str = ""

    @classmethod
    def of(cls, rows: Any) -> DataSource:
        """Name the source of a `datasets.Dataset`; rows of any other type have an unknown source."""
        from datasets import Dataset  # takes more than a second

        if not isinstance(rows, Dataset):
            return cls()
        homepage, name = rows.info.homepage or "", rows.info.dataset_name or ""
        if homepage.startswith(HUB):
            return cls(homepage.removeprefix(HUB), True, str(rows.split or ""))
        # A local file that `datasets.load_dataset` read is named after its format, such as json.
        return cls("" if name == rows.info.builder_name else Path(name).name)

    @staticmethod
    def note(rows: Dataset, source: str) -> Dataset:
        """Note in a dataset, in place, the Hub id that it was loaded by; a folder of this machine is not noted.

        `datasets` itself keeps neither the owner nor the spelling of the name.
        """
        if not Path(source).exists():
            rows.info.homepage = HUB + source
        return rows
