"""Read JSON and CSV files of the Hugging Face hub as they are written.

The `datasets` library makes a table of typed columns of them: a column whose texts are all ISO
dates becomes one of times, "007" of a CSV file becomes 7, an empty file ends with a bare
`StopIteration`, and a column that is null for the first 10 MiB or changes its type later fails the
load. So only the names of the files of each split and the download come from the library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from arkor.backend.data.file_readers import Record, read_records

#: The endings of the files that are read here; others have typed columns already.
_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")

#: Options of a data set that do not change how its files are read; `sep` follows from the name.
_NEUTRAL_OPTIONS = {"name", "version", "description", "data_dir", "data_files", "sep"}


@frozen
class HubFiles:
    """The files of each split: their path on this machine and their name in the repository."""

    splits: Mapping[str, list[tuple[Path, str]]]

    @classmethod
    def find(cls, name: str, subset: str | None) -> HubFiles | None:
        """Download the files of a data set; None if the library must read them.

        Raises the errors of the library.
        """
        import datasets  # noqa: PLC0415 - takes a second

        builder = _load_builder(name, subset)
        if not _is_plain(builder):
            return None
        manager = datasets.DownloadManager(dataset_name=builder.dataset_name)
        splits = {}
        for split, urls in builder.config.data_files.items():
            paths = map(Path, manager.download([str(url) for url in urls]))
            names = [str(url).rpartition("/")[2] for url in urls]
            splits[str(split)] = list(zip(paths, names, strict=True))
        return cls(splits)

    def records(self, split: str | None) -> Iterable[Record] | Mapping[str, Iterable[Record]]:
        """Return the records of a split or a slice like `train[:10%]`; of all splits for None.

        Raises ValueError for a split that does not exist.
        """
        if split is None:
            return {name: self._read(name) for name in self.splits}
        return self._read(split) if split in self.splits else self._slices(split)

    def _read(self, split: str) -> Iterator[Record]:
        for path, name in self.splits[split]:
            for record in read_records(path, name):
                yield Record(f"{name}, {record.place}", record.value, record.fault)

    def _slices(self, spec: str) -> Iterator[Record]:
        import datasets  # noqa: PLC0415 - as above

        lengths = {name: sum(1 for _ in self._read(name)) if name in spec else 0 for name in self.splits}
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(lengths)
        return (record for part in parts for record in self._part(part.splitname, part.from_ or 0, part.to))

    def _part(self, split: str, start: int, stop: int | None) -> Iterator[Record]:
        for number, record in enumerate(self._read(split)):
            if stop is not None and number >= stop:
                return
            if number >= start:
                yield record


def _load_builder(name: str, subset: str | None) -> Any:
    """Return what the library knows of a data set; from the cache if the hub cannot be reached."""
    import datasets  # noqa: PLC0415 - as above
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - as above
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415 - as above

    try:
        return datasets.load_dataset_builder(name, subset)
    except ConnectionError as error:
        try:
            folder = snapshot_download(name, repo_type="dataset", local_files_only=True)
        except LocalEntryNotFoundError:
            raise error from None
    return datasets.load_dataset_builder(folder, subset)


def _is_plain(builder: Any) -> bool:
    """Return whether the files are JSON or CSV, and the data set sets no option for reading them."""
    config = builder.config
    files = [str(url) for urls in (config.data_files or {}).values() for url in urls]
    if not files or builder.info.features is not None:
        return False
    options, defaults = (
        {field.name: getattr(owner, field.name) for field in dataclasses.fields(owner)}
        for owner in (config, type(config)())
    )
    if any(options[name] != defaults[name] for name in options.keys() - _NEUTRAL_OPTIONS):
        return False
    separators = {".csv": ",", ".tsv": "\t"}
    endings = [Path(file.lower().removesuffix(".gz")).suffix for file in files]
    return all(ending in _ENDINGS and options.get("sep", ",") == separators.get(ending, ",") for ending in endings)
