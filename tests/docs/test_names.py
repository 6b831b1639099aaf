"""Every name in the documents' inline code exists, and every link leads somewhere."""

from __future__ import annotations

import pytest

from tests.docs import names
from tests.docs.documents import ROOT, Document, parse


def test_names_in_documents(documents: list[Document]) -> None:
    found = [problem for document in documents for problem in names.problems(document)]
    assert not found, "\n".join(found)


def test_names_in_comments_of_yamls() -> None:
    paths = sorted((ROOT / "yamls").rglob("*.yaml"))
    pages = [parse(str(path.relative_to(ROOT)), comments_of(path.read_text(encoding="utf-8"))) for path in paths]
    found = [problem for page in pages for problem in names.problems(page)]
    assert not found, "\n".join(found)


def test_files_of_stores_and_run_folders(documents: list[Document]) -> None:
    (page,) = [document for document in documents if document.place == "docs/concepts/stores-and-fingerprints.md"]
    assert not names.unknown_files(page)
    text = "    store/\n      source_hash.json   hashes\n      manifest.json\n"
    assert names.unknown_files(parse("docs/page.md", text)) == ["docs/page.md:2: no code names source_hash.json"]


def comments_of(text: str) -> str:
    """The comments of a YAML, each on its line."""
    return "\n".join(line.partition("#")[2].strip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("`train.keep_checkpoint`", "there is no key train.keep_checkpoint"),
        ("`clean.dedupe`", "there is no key clean.dedupe"),
        ("`num_beam: 5`", "there is no key num_beam"),
        ("`train.decay_step: end`", "there is no key train.decay_step"),
        ("`--slise 1/8`", "no program has the option --slise"),
        ("`dataengine verfy CONFIG`", "dataengine has no command verfy"),
        ("`dataengine plan --slice 1/8`", "plan has no option --slice"),
        ("`build --slise I/N`", "build has no option --slise"),
        ("`dataengine plan yamls/paralel_first.yaml`", "there is no yamls/paralel_first.yaml"),
        ("`dataengine build CONFIG streams.mono.epoch=2`", "there is no key streams.mono.epoch"),
        ("`S3_ENDPOINT`", "this word is nowhere in the code"),
        ("`python trainer/audit.py RUN --lins`", "trainer/audit.py has no option --lins"),
        ("`make demos`", "the Makefile has no target demos"),
        ("`dataengine/config/shema.py`", "there is no dataengine/config/shema.py"),
        ("`yamls/uni_en_xx`", "there is no yamls/uni_en_xx"),
        ("`dataengine.mds.types.Shart`", "there is no dataengine.mds.types.Shart"),
        ("`trainer.train.mian()`", "there is no trainer.train.mian"),
        ("`read_manifesto`", "this word is nowhere in the code"),
        ("`shema.py`", "no file has the name shema.py"),
        ("[text](missing.md)", "the link missing.md leads nowhere"),
        ("[text](../README.md#no-such-heading)", "README.md has no such heading"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(text: str, said: str) -> None:
    (found,) = names.problems(parse("docs/page.md", f"# Title\n\nSee {text}.\n"))
    assert found.startswith("docs/page.md:3: ")
    assert found.endswith(said)


@pytest.mark.parametrize(
    "text",
    [
        *("`train.keep_checkpoints: 3`", "`streams.NAME.epochs`", "`evaluate.num_beams=5`", "`meta.text`"),
        *("`--slice 1/8`", "`dataengine build CONFIG --dry-run`", "`build --finalize`", "`make X`", "`composer -n 2`"),
        *("`dataengine/config/`", "`yamls/mini/*.yaml`", "`yamls/uni_en_zh`", "`schema.py`", "`config.yaml`"),
        *(
            "`dataengine.config.load.load_config`",
            "`torch.load`",
            "`log.csv`",
            "`yamls/mine/first.yaml`",
            "`bos: true`",
        ),
        *(
            "`num_fewshot`",
            "`trainer/run/log_csv.py:17`",
            "[text](../README.md#documentation)",
            "[text](https://a.b/c)",
        ),
    ],
)
def test_what_exists_is_well(text: str) -> None:
    assert names.problems(parse("docs/page.md", f"See {text}.\n")) == []
