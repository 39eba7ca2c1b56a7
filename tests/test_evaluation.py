"""`rerankd eval`: reading collections, measures, report, and the built-in model on the included
collection."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

import pytest

from rerankd import evaluation
from rerankd.config import Settings
from rerankd.errors import CollectionError, ConfigError, MissingExtra
from rerankd.evaluation import bm25, measure, report, second_stage
from rerankd.evaluation.collection import EVERYDAY, Collection, Faults, read, read_run
from rerankd.service import Reranker
from support import rerankd

CORPUS = [
    {"_id": "a", "title": "Bears", "text": "eat bamboo"},
    {"_id": "b", "text": "bread is baked"},
    {"_id": "c", "title": "", "text": "大熊猫吃竹子"},
]
QUERIES = [{"_id": "q", "text": "what do bears eat?"}, {"_id": "r", "text": "nobody judged this"}]
QRELS = "query-id\tcorpus-id\tscore\nq\ta\t2\nq\tb\t0\nq\tc\t1\n"


def folder(at: Path, corpus: str | None = None, queries: str | None = None, qrels: str = QRELS) -> Path:
    (at / "qrels").mkdir(parents=True, exist_ok=True)
    lines = ["\n".join(map(json.dumps, rows)) for rows in (CORPUS, QUERIES)]
    (at / "corpus.jsonl").write_text(lines[0] if corpus is None else corpus)
    (at / "queries.jsonl").write_text(lines[1] if queries is None else queries)
    (at / "qrels" / "test.tsv").write_text(qrels)
    return at


# nDCG@10 with ten candidates per query. The built-in model reaches 0.395.
BM25_NDCG = 0.2741
NDCG_FLOOR = 0.37


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_a_collection_is_read(tmp_path: Path) -> None:
    found = read(folder(tmp_path / "mine"))
    assert found == Collection(
        "mine",
        {"a": "Bears eat bamboo", "b": "bread is baked", "c": "大熊猫吃竹子"},
        {"q": "what do bears eat?"},
        {"q": {"a": 2, "b": 0, "c": 1}},
        unjudged=frozenset({"r"}),
    )


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"corpus": "{"}, r"corpus.jsonl, line 1: not valid JSON"),
        (
            {"corpus": '{"text": "x"}'},
            r'corpus.jsonl, line 1: expected an object with an "_id" that',
        ),
        ({"corpus": '{"_id": "a"}'}, r'corpus.jsonl, line 1: "text" is missing'),
        ({"corpus": '{"_id": "a", "text": 3}'}, r'line 1: "text" is not a string'),
        (
            {"corpus": '{"_id": "a", "text": ""}\n\n{"_id": "a", "text": "x"}'},
            r"line 3: the id 'a' occurs twice, with different texts",
        ),
        ({"corpus": "\n"}, r"corpus.jsonl is empty"),
        ({"qrels": "q a 2\n"}, r"test.tsv, line 1: the line has 1 fields, but must have three"),
        ({"qrels": "q\ta\tgood\n"}, r"line 1: the score 'good' is not a whole number"),
        ({"qrels": "z\ta\t1\n"}, r"query 'z' is not in queries.jsonl"),
        ({"qrels": "q\tz\t1\n"}, r"document 'z' is not in corpus.jsonl"),
        (
            {"qrels": "q\ta\t1\nq\ta\t2\n"},
            r"line 2: query 'q' and document 'a' are judged twice, with different",
        ),
        ({"corpus": '{"_id": true, "text": "x"}'}, r"line 1: expected an object with an"),
        ({"corpus": '{"_id": "a", "text": false}'}, r'line 1: "text" is not a string'),
        ({"qrels": "query-id\tcorpus-id\tscore\n"}, r"has no judgements"),
    ],
)
def test_an_invalid_line_is_reported_with_its_location(
    tmp_path: Path, parts: dict[str, str], says: str
) -> None:
    with pytest.raises(CollectionError, match=says):
        read(folder(tmp_path, **parts))


def test_a_missing_file_and_a_missing_split_are_reported(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="A collection is a folder in BEIR's layout"):
        read(tmp_path)
    with pytest.raises(CollectionError, match="Name another split with --split; available splits: test"):
        read(folder(tmp_path), "dev")


def test_a_run_is_sorted_by_score_and_truncated_to_its_depth(tmp_path: Path) -> None:
    collection = read(folder(tmp_path))
    run = tmp_path / "first.run"
    run.write_text("q Q0 b 1 0.5 x\nq Q0 a 2 7e1 x\nq Q0 c 3 0.5 x\nr Q0 a 1 1 x\n")
    assert read_run(run, collection, 2) == {"q": ("a", "b")}
    assert read_run(run, collection, 9) == {"q": ("a", "b", "c")}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("q a 1\n", "line 1: the line has 3 fields, but a run has six"),
        ("q Q0 z 1 1 x\n", "document 'z' is not in corpus.jsonl"),
        ("q Q0 a 1 1 x\nq Q0 a 2 3 x\n", "line 2: document 'a' occurs twice for query 'q', with different"),
        ("q Q0 a 1 nan x\n", "the score 'nan' is not a number"),
        (
            "q Q0 a 1 1 x\nunknown Q0 a 1 1 x\n",
            r"query 'unknown' is not in queries.jsonl. \(--lenient",
        ),
        ("r Q0 a 1 1 x\n", "no document for any query with a judgement"),
    ],
)
def test_an_invalid_run_is_reported_with_its_location(tmp_path: Path, text: str, says: str) -> None:
    run = tmp_path / "first.run"
    run.write_text(text)
    with pytest.raises(CollectionError, match=says):
        read_run(run, read(folder(tmp_path)), 10)


def test_files_with_a_byte_order_mark_are_read_whole(tmp_path: Path) -> None:
    """The mark became part of the first id, so the first query of a run was unknown and dropped."""
    mine = folder(tmp_path / "mine")
    for path in (mine / "corpus.jsonl", mine / "queries.jsonl", mine / "qrels" / "test.tsv"):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    marked = read(mine)
    assert marked == read(folder(tmp_path / "mine"))
    run = tmp_path / "first.run"
    run.write_text("q Q0 b 1 1 x\n", encoding="utf-8-sig")
    assert read_run(run, marked, 10) == {"q": ("b",)}
    run.write_text("q Q0 b 1 1 x\n", encoding="utf-16")
    assert read_run(run, marked, 10) == {"q": ("b",)}


def test_ids_that_are_json_numbers_match_the_digits_in_other_files(tmp_path: Path) -> None:
    collection = read(
        folder(
            tmp_path,
            corpus='{"_id": 12345678901234567890, "text": "a"}\n{"_id": 7, "text": "b"}',
            queries='{"_id": 1, "text": "q"}',
            qrels="1\t12345678901234567890\t1\n1\t7\t0\n",
        )
    )
    assert collection.judgements == {"1": {"12345678901234567890": 1, "7": 0}}
    run = tmp_path / "first.run"
    run.write_text("1 Q0 7 1 1 x\n")
    assert read_run(run, collection, 10) == {"1": ("7",)}


def test_a_repeated_line_is_ignored(tmp_path: Path) -> None:
    once = read(folder(tmp_path))
    for path in (tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl", tmp_path / "qrels" / "test.tsv"):
        path.write_text(path.read_text().rstrip("\n") + "\n" + path.read_text().splitlines()[-1] + "\n")
    assert read(tmp_path) == once
    run = tmp_path / "first.run"
    run.write_text("q Q0 b 1 1 x\nq Q0 b 1 1 x\n")
    assert read_run(run, once, 10) == {"q": ("b",)}


def test_lenient_skips_invalid_lines_and_keeps_the_reasons(tmp_path: Path) -> None:
    faults = Faults(lenient=True)
    corpus = "\n".join([*map(json.dumps, CORPUS), "{", '{"_id": "a", "text": "another"}'])
    collection = read(folder(tmp_path, corpus=corpus, qrels=QRELS + "q\tz\t1\n"), faults=faults)
    assert collection.documents["a"] == "Bears eat bamboo"
    run = tmp_path / "first.run"
    run.write_text("q Q0 b 1 2 x\nq Q0 b 1 1 x\nz Q0 b 1 1 x\nq Q0\n")
    assert read_run(run, collection, 10, faults) == {"q": ("b",)}
    assert [re.sub(".*/", "", line).partition(":")[0] for line in faults.skipped] == [
        "corpus.jsonl, line 4",
        "corpus.jsonl, line 5",
        "test.tsv, line 5",
        "first.run, line 2",
        "first.run, line 3",
        "first.run, line 4",
    ]


# The queries of ArguAna and Quora are documents too, and each finds itself first.
OWN_CORPUS = [
    {"_id": "q", "text": "what do bears eat in the forest?"},
    {"_id": "a", "text": "what bears eat is bamboo"},
    {"_id": "b", "text": "bread is baked"},
]


def own_folder(at: Path, qrels: str) -> Path:
    queries = json.dumps({"_id": "q", "text": "what do bears eat in the forest?"})
    return folder(at, corpus="\n".join(map(json.dumps, OWN_CORPUS)), queries=queries, qrels=qrels)


def test_a_query_that_is_also_a_document_is_not_its_own_candidate(tmp_path: Path) -> None:
    collection = read(own_folder(tmp_path, "q\ta\t1\n"))
    assert collection.own == {"q"}
    assert bm25.rank(collection, 1, quiet) == {"q": ("a",)}
    run = tmp_path / "first.run"
    run.write_text("q Q0 q 1 9 x\nq Q0 a 2 8 x\nq Q0 b 3 7 x\n")
    assert read_run(run, collection, 2) == {"q": ("a", "b")}
    (ndcg,) = measure.parse(("nDCG@10",))
    assert measure.of_queries(collection.judgements, read_run(run, collection, 2), ndcg) == {"q": 1.0}


def test_a_document_with_the_id_of_the_query_stays_if_it_is_judged_relevant(tmp_path: Path) -> None:
    """If queries and documents are both numbered from 1, equal ids mean nothing."""
    collection = read(own_folder(tmp_path, "q\tq\t1\n"))
    assert collection.own == frozenset()
    assert bm25.rank(collection, 1, quiet) == {"q": ("q",)}


def test_the_command_reports_what_it_excluded(tmp_path: Path, home: Path) -> None:
    mine = own_folder(tmp_path / "mine", "q\ta\t1\nq\tz\t1\n")
    run = tmp_path / "first.run"
    run.write_text("q Q0 q 1 9 x\nq Q0 b 2 8 x\nq Q0 a 3 7 x\n")
    arguments = ("eval", str(mine), "--model", "builtin:e5", "--run", str(run))
    strict = rerankd(*arguments, home=home)
    assert (strict.returncode, "--lenient skips and reports such lines" in strict.stderr) == (2, True)
    ended = rerankd(*arguments, "--lenient", home=home)
    assert ended.returncode == 0, ended.stderr
    assert "(same id): 1. Each was excluded from\n" in ended.stdout
    assert "Invalid lines that were skipped (--lenient): 1" in ended.stdout
    assert "document 'z' is not in corpus.jsonl" in ended.stdout
    assert re.search(r"nDCG@10 +0\.6309 +1\.0000", ended.stdout), ended.stdout


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Bears EAT, bears ate!", ["bear", "eat", "bear", "ate"]),
        ("大熊猫 eats", ["大", "熊", "猫", "大熊", "熊猫", "eat"]),
        ("ｐａｎｄａ①", ["panda1"]),
        ("熊", ["熊"]),
        ("snake_case 8080", ["snake", "case", "8080"]),
        ("… —", []),
    ],
)
def test_tokens_of_the_first_stage(text: str, tokens: list[str]) -> None:
    assert bm25.tokens(text) == tokens


def test_bm25_returns_only_documents_that_share_a_token(tmp_path: Path) -> None:
    queries = "\n".join(
        json.dumps({"_id": name, "text": text})
        for name, text in (("q", "bears eating"), ("s", "熊猫"), ("t", "zebra"))
    )
    qrels = QRELS + "s\tc\t1\nt\ta\t1\n"
    collection = read(folder(tmp_path, queries=queries, qrels=qrels))
    assert bm25.rank(collection, 10, quiet) == {"q": ("a",), "s": ("c",), "t": ()}


def test_measures_match_values_computed_by_hand() -> None:
    judgements = {"q": {"a": 2, "b": 1, "c": 0}, "r": {"a": 1}}
    ranking = {"q": ("c", "b", "a"), "r": ()}
    ndcg, rr, recall = (
        measure.of_queries(judgements, ranking, one) for one in measure.parse(("nDCG@10", "RR@10", "R@2"))
    )
    # (1 / log2 3 + 2 / log2 4) / (2 / log2 2 + 1 / log2 3)
    assert ndcg == {"q": pytest.approx(0.61991, abs=1e-5), "r": 0.0}
    assert rr == {"q": 0.5, "r": 0.0}
    assert recall == {"q": 0.5, "r": 0.0}


def test_an_unknown_measure_is_rejected() -> None:
    with pytest.raises(ConfigError, match="'nDGC@10' is not a measure of ir-measures"):
        measure.parse(("nDGC@10",))


def test_the_significance_test() -> None:
    better = [0.1 * at for at in range(8)], [0.1 * at + 0.05 for at in range(8)]
    # For few queries the test is exact: of 2^8 combinations of swaps, two are as extreme.
    assert measure.randomisation_p(*better, seed=1) == pytest.approx(2 / 2**8)
    assert measure.randomisation_p([0.5] * 9, [0.5] * 9, seed=1) == 1.0
    assert measure.randomisation_p([0.4, 0.6] * 20, [0.6, 0.4] * 20, seed=1) == pytest.approx(1.0)
    many = [0.3 + at % 7 / 10 for at in range(60)], [0.3 + at % 5 / 8 for at in range(60)]
    assert measure.randomisation_p(*many, seed=1) == measure.randomisation_p(*many, seed=1)
    assert 0.001 < measure.randomisation_p(*many, seed=1) < 0.99


async def test_the_report_compares_before_and_after() -> None:
    collection = Collection(
        "mine",
        {"a": "about a", "b": "about b", "c": "c " * 100},
        {"q": "which?", "r": "who?", "s": "nothing found"},
        {"q": {"a": 2}, "r": {"b": 1, "a": 0}, "s": {"c": 1}},
    )
    before = {"q": ("b", "a"), "r": ("b", "a"), "s": ()}

    async def backwards(query: str, documents: object) -> list[int]:
        return [1, 0]

    after = await second_stage.rerank(collection, before, backwards, quiet)
    assert after.ranking == {"q": ("a", "b"), "r": ("a", "b"), "s": ()}
    assert set(after.seconds) == {"q", "r"}
    compared = measure.compare(collection.judgements, before, after.ranking, ("RR@10",), seed=1)
    found = report.Evaluation(collection, "m", "BM25", 10, before, after, compared)
    text = report.text(found, 3)
    assert re.search(r"RR@10 +0\.5000 +0\.5000 +\+0\.0000 +1\.0000 +1 +1 +1", text)
    assert "66.7% of the relevant documents were among the candidates" in text
    assert (
        "-0.500  r: who?\n    now first, grade 0: a: about a\n    grade 1, rank 1 before and 2 after: b"
        in text
    )
    assert "+0.500  q: which?\n    now first, grade 2: a: about a" in text
    document = report.as_json(found)
    assert document["measures"]["RR@10"] == {"before": 0.5, "after": 0.5, "p": 1.0, "better": 1, "worse": 1}
    assert document["per_query"][2]["seconds"] is None
    assert report.run_lines(after.ranking, "a b")[:2] == ["q Q0 a 1 2 a_b", "q Q0 b 2 1 a_b"]


def test_missing_libraries_are_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "find_spec", lambda name: None if name == "bm25s" else object())
    with pytest.raises(MissingExtra, match=r"not installed: bm25s\..*pip install 'rerankd\[eval\]'"):
        evaluation.check_installed()


def test_the_included_collection_is_complete() -> None:
    collection = read(EVERYDAY)
    assert (len(collection.queries), len(collection.documents)) == (60, 400)
    assert len(set(collection.documents.values())) == 400
    for query, grades in collection.judgements.items():
        assert set(grades.values()) <= {0, 1, 2}, query
        assert 2 in grades.values(), query
        assert 0 in grades.values(), query
    chinese = [text for text in collection.queries.values() if re.search("[\u4e00-\u9fff]", text)]
    assert len(chinese) == 26


@pytest.mark.timeout(900)
async def test_the_builtin_model_ranks_the_included_collection_better_than_bm25(home: Path) -> None:
    collection = read(EVERYDAY)
    candidates = bm25.rank(collection, 10, quiet)
    # One thread: on a busy machine, two threads spend most of their time waiting for each other.
    async with Reranker(Settings(home=home, threads=1)) as reranker:

        async def ask(query: str, documents: object) -> list[int]:
            return [one.index for one in (await reranker.rerank(query, documents)).results]  # type: ignore[arg-type]

        after = await second_stage.rerank(collection, candidates, ask, quiet)
    (ndcg,) = measure.compare(collection.judgements, candidates, after.ranking, ("nDCG@10",), seed=1)
    # BM25 depends only on the files, so its value is exact.
    assert ndcg.mean_before == pytest.approx(BM25_NDCG, abs=1e-4)
    assert ndcg.mean_after > NDCG_FLOOR
    assert ndcg.p < 0.01


def test_the_command_reranks_a_run_and_saves_one(tmp_path: Path, home: Path) -> None:
    mine = folder(tmp_path / "mine")
    run = tmp_path / "first.run"
    run.write_text("q Q0 b 1 3 x\nq Q0 c 2 2 x\nq Q0 a 3 1 x\n")
    saved = tmp_path / "second.run"
    arguments = (str(mine), "--model", "builtin:e5", "--run", str(run), "--save-run", str(saved))
    ended = rerankd("eval", *arguments, "--json", home=home)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["model"] == "builtin:e5"
    assert told["measures"]["RR@10"]["before"] == 0.5
    assert told["measures"]["nDCG@10"]["after"] > told["measures"]["nDCG@10"]["before"]
    assert saved.read_text().splitlines()[0].startswith("q Q0 a 1 ")


def test_a_folder_that_is_no_collection_is_reported(tmp_path: Path) -> None:
    ended = rerankd("eval", str(tmp_path), home=tmp_path)
    assert ended.returncode == 2
    assert "does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr
