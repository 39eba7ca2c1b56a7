from __future__ import annotations

from rerankd.scoring.cache import CachedScore, QueryVectors, ScoreCache


def one(cache: ScoreCache, query: str, text: str, truncation: str = "") -> bytes:
    (key,) = cache.keys(query.encode(), [text], truncation)
    return key


def known(raw: float, tokens: int = 1) -> CachedScore:
    return CachedScore(raw, tokens, is_truncated=False)


def test_the_cache_key_covers_everything_a_score_depends_on() -> None:
    cache = ScoreCache(10, "file a")
    cache.put(one(cache, "q", "t"), known(0.0, 7))
    assert cache.get(one(cache, "q", "t")) == known(0.0, 7)
    for other in (
        one(cache, "q", "T"),
        one(cache, "qt", ""),
        one(cache, "", "qt"),
        one(cache, "q", "t", "i"),
        one(ScoreCache(10, "file b"), "q", "t"),
    ):
        assert cache.get(other) is None


def test_scores_of_another_engine_build_or_precision_are_cache_misses() -> None:
    cache = ScoreCache(10, "m")
    cache.set_engine("openvino f32")
    cache.put(one(cache, "q", "t"), known(0.5, 3))
    cache.set_engine("openvino f32")
    assert cache.get(one(cache, "q", "t")) == known(0.5, 3), "loaded again as it was"
    cache.set_engine("openvino bf16")
    assert cache.get(one(cache, "q", "t")) is None
    cache.put(one(cache, "q", "t"), known(0.51, 3))
    cache.set_engine("openvino f32")
    assert cache.get(one(cache, "q", "t")) is None, "an old value does not come back"


def test_the_least_recently_used_score_is_evicted() -> None:
    cache = ScoreCache(2, "m")
    first, second, third = cache.keys(b"q", ["1", "2", "3"])
    cache.put(first, known(1))
    cache.put(second, known(2))
    assert cache.get(first) == known(1)
    cache.put(third, known(3))
    assert (cache.get(first), cache.get(second), cache.get(third)) == (known(1), None, known(3))
    assert len(cache) == 2


def test_zero_entries_disable_the_cache() -> None:
    cache = ScoreCache(0, "m")
    assert cache.keys(b"q", ["1", "2"]) == []
    cache.put(b"key", known(1))
    assert len(cache) == 0


def test_vectors_of_the_most_recent_queries_are_kept() -> None:
    vectors = QueryVectors[str]()
    for number in range(100):
        vectors.put(b"query %d" % number, f"vector {number}")
    kept = [number for number in range(100) if vectors.get(b"query %d" % number) == f"vector {number}"]
    assert kept == list(range(36, 100))
