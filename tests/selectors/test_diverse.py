import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tithe.errors import DataError, SettingsError
from tithe.neighbours import kmeans
from tithe.plugins import build_selector
from tithe.records import Scores
from tithe.selectors.budget import Budget
from tithe.selectors.facility_location import FacilityLocation, share_below
from tithe.selectors.filters import without
from tithe.selectors.kcenter import KCenter
from tithe.selectors.kmeans import KMeans
from tithe.selectors.per_prompt import PerPrompt
from tithe.selectors.repr_filter import Deita
from tithe.testing import check_selector

DIVERSE = ("kcenter", "facility-location", "deita", "kmeans(clusters=5)")
NAN = float("nan")


def scores_of(values, vectors=None, **columns):
    values = np.asarray(values, dtype=float)
    problems = {int(i): "no response token left" for i in np.flatnonzero(np.isnan(values))}
    ids = [f"e{i:04d}" for i in range(len(values))]
    columns = {name: np.array(column) for name, column in columns.items()}
    vectors = None if vectors is None else np.asarray(vectors, dtype=np.float32)
    return Scores(ids, values, problems, columns, vectors=vectors)


def rows(selection):
    return [int(id_[1:]) for id_ in selection.kept]


def keep(selector, scores, budget):
    return rows(selector.select(scores, Budget.parse(budget)))


def at(*degrees):
    """Vectors in a plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def random_unit(count, dim=6, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "kcenter(start=central, pool=0.3)",
        "facility-location(weight=5)",
        "deita(threshold=0.3)",
        "kmeans(clusters=7, inner=centre, share=proportional)",
        "kmeans(clusters=1)",
        "per-prompt(n=2)",
    ],
)
def test_contract(spec):
    check_selector(build_selector(spec))


@pytest.mark.parametrize("spec", DIVERSE)
class TestAll:
    def test_vectors_are_needed(self, spec):
        with pytest.raises(SettingsError, match="compares prompts, but the scores have no vectors"):
            build_selector(spec).select(scores_of([1, 2, 3]), Budget.parse(1))

    @pytest.mark.parametrize(("value", "what"), [(NAN, "not finite"), (2.0, "has length 2, not 1")])
    def test_a_vector_that_is_none_is_named(self, spec, value, what):
        vectors = random_unit(9)
        vectors[4] = [value, 0, 0, 0, 0, 0]
        with pytest.raises(DataError, match=f"example `e0004` by encoder `self`.*{what}"):
            build_selector(spec).select(scores_of(range(9), vectors), Budget.parse(2))

    def test_what_has_no_score_has_no_say(self, spec):
        """Neither kept, nor covered, nor in the way; whatever its vector is."""
        values = np.where(np.arange(60) % 3 == 0, NAN, np.random.default_rng(0).normal(size=60))
        found = []
        for seed in (1, 2):
            vectors = random_unit(60)
            vectors[::3] = random_unit(20, seed=seed) if seed == 1 else 0
            found.append(build_selector(spec).select(scores_of(values, vectors), Budget.parse(8)))
        assert found[0] == found[1]
        assert not {int(id_[1:]) % 3 for id_ in found[0].kept} & {0}
        assert all(found[0].dropped[f"e{i:04d}"] == "no response token left" for i in range(0, 60, 3))

    def test_filters_take_out_and_keep_their_reason(self, spec):
        scores = scores_of(range(30), random_unit(30), prompt=[f"p{i}" for i in range(30)])
        rest = without(scores, {i: "ifd > 1" for i in range(10, 30)})
        assert rest.vectors is scores.vectors and set(rest.columns) == {"prompt"}
        selection = build_selector(spec).select(rest, Budget.parse(5))
        assert selection.kept and max(rows(selection)) < 10
        assert selection.reasons()["ifd > 1"] == 20

    def test_a_budget_of_everything(self, spec):
        scores = scores_of(range(40), random_unit(40, dim=30))
        assert keep(build_selector(spec), scores, "100%") == list(range(40))
        assert keep(build_selector(spec), scores, 400) == list(range(40))

    def test_one_example(self, spec):
        scores = scores_of([0.5], random_unit(1), response_tokens=[7])
        assert keep(build_selector(spec), scores, 1) == keep(build_selector(spec), scores, "7-tokens") == [0]
        with pytest.raises(SettingsError, match="less than the 7 response tokens"):
            build_selector(spec).select(scores, Budget.parse("6-tokens"))

    def test_tokens_end_with_the_first_that_does_not_fit(self, spec):
        """As long as the order is, the tokens are those of its front: the same as that many rows."""
        tokens = np.random.default_rng(4).integers(1, 50, size=50)
        scores = scores_of(range(50), random_unit(50, dim=20), response_tokens=tokens)
        kept = keep(build_selector(spec), scores, "300-tokens")
        assert sum(tokens[kept]) <= 300
        if "kmeans" not in spec:  # which takes turns for tokens, and has quotas for rows
            assert kept == keep(build_selector(spec), scores, len(kept))
            more = keep(build_selector(spec), scores, len(kept) + 1)
            assert sum(tokens[more]) > 300

    def test_a_token_budget_without_counts(self, spec):
        with pytest.raises(SettingsError, match="needs the column `response_tokens`"):
            build_selector(spec).select(scores_of(range(5), random_unit(5)), Budget.parse("30-tokens"))

    def test_infinite_scores_are_scores(self, spec):
        scores = scores_of([-np.inf, np.inf, 0, 1], random_unit(4))
        assert len(keep(build_selector(spec), scores, 4)) == 4

    def test_the_encoder_is_a_setting(self, spec):
        assert build_selector(spec).encoder == "self"
        name, _, inside = spec.partition("(")
        other = build_selector(f"{name}(encoder=tfidf{', ' + inside if inside else ')'}")
        assert other.encoder == "tfidf" and "encoder='tfidf'" in str(other)
        assert build_selector(str(other)) == other


# --- kcenter


def test_kcenter_starts_with_the_best_and_goes_far():
    scores = scores_of([1, 5, 2, 3, 4], at(0, 10, 20, 90, 180))
    assert [keep(KCenter(), scores, k) for k in (1, 2, 3)] == [[1], [1, 4], [1, 3, 4]]


def test_kcenter_of_equal_scores_starts_with_the_first():
    assert keep(KCenter(), scores_of([1, 1, 1], at(0, 90, 180)), 1) == [0]


def test_kcenter_may_start_in_the_middle():
    scores = scores_of([5, 1, 1], at(0, 40, 90))
    assert keep(KCenter(start="central"), scores, 1) == [1]


def test_kcenter_has_a_pool():
    """The best half of five is three: rounded up, so that a pool is never empty."""
    scores = scores_of([5, 4, 3, 2, NAN, 1], at(0, 5, 10, 90, 100, 180))
    selection = KCenter(pool=0.5).select(scores, Budget.parse(2))
    assert rows(selection) == [0, 2]
    assert selection.reasons() == {"outside the pool": 2, "covered by what is kept": 1, "no response token left": 1}
    assert keep(KCenter(pool=1e-9), scores, 3) == [0]
    assert keep(KCenter(pool=0.4), scores, 5) == [0, 1]  # exactly two, not 2.0000000000000004


def test_kcenter_radius_is_at_most_twice_the_best():
    """Gonzalez' bound, for the angle, which is a metric; the best of all choices is found by trying all."""
    from itertools import combinations

    for seed in range(5):
        vectors = random_unit(12, 3, seed)
        angles = np.arccos(np.clip(vectors @ vectors.T, -1, 1))
        kept = keep(KCenter(), scores_of(np.arange(12), vectors), 3)
        best = min(angles[:, list(some)].min(axis=1).max() for some in combinations(range(12), 3))
        assert angles[:, kept].min(axis=1).max() <= 2 * best + 1e-6


# --- facility location


def test_facility_location_takes_from_the_middle_of_what_it_stands_for():
    scores = scores_of([1, 2, 3, 4, 5, 6], at(0, 10, 20, 150, 160, 170))
    assert keep(FacilityLocation(), scores, 2) == [1, 4]


def test_the_weight_of_the_score():
    """Two alike: with a weight the better one, with a large one the ranking."""
    scores = scores_of([1, 3, 2, 9, 8], at(0, 0, 90, 91, 92))
    assert keep(FacilityLocation(), scores, 2) == [0, 3]
    assert keep(FacilityLocation(weight=0.1), scores, 2) == [1, 3]
    assert keep(FacilityLocation(weight=1000), scores, 2) == [3, 4]


def test_share_below_is_without_unit_and_equal_for_equals():
    assert share_below(np.array([5.0, 1e9, 5.0, -np.inf, np.inf])).tolist() == [0.25, 0.75, 0.25, 0.0, 1.0]
    assert share_below(np.array([3.0])).tolist() == [0.0]
    assert share_below(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]


# --- deita


def test_deita_skips_what_is_like_something_kept():
    vectors = at(0, 10, 40, 41, 90, 91)  # cos 10 = 0.985, cos 30 = 0.866
    selection = Deita().select(scores_of([6, 5, 4, 3, 2, 1], vectors), Budget.parse(3))
    assert rows(selection) == [0, 2, 4]
    assert selection.reasons() == {"too like something kept": 2, "below the budget": 1}


def test_the_threshold_is_a_similarity_and_not_a_distance():
    """A re-implementation drops at a distance of 0.9 and more: of unlike prompts it keeps one, of equal ones all."""
    unlike, equal = scores_of(np.arange(5.0), np.eye(5)), scores_of(np.arange(5.0), np.eye(5)[[0] * 5])
    assert keep(Deita(), unlike, 5) == [0, 1, 2, 3, 4]
    assert keep(Deita(), equal, 5) == [4]


def test_at_the_threshold_is_too_like():
    vectors = [[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]]  # a cosine of exactly 0.5
    assert keep(Deita(threshold=0.5), scores_of([2, 1], vectors), 2) == [0]
    assert keep(Deita(threshold=0.51), scores_of([2, 1], vectors), 2) == [0, 1]


def test_equal_prompts_are_too_like_at_any_threshold():
    vectors = random_unit(30, 300)[np.arange(60) % 30]
    assert keep(Deita(threshold=1.0), scores_of(np.arange(60), vectors), 60) == list(range(30, 60))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 12), st.sampled_from([30, 60, 89, 120]))
@settings(deadline=None)
def test_deita_is_the_walk_one_by_one(values, budget, apart):
    degrees = [(37 * i * i) % 360 for i in range(len(values))]
    kept = []
    for i in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        away = [min((degrees[i] - degrees[j]) % 360, (degrees[j] - degrees[i]) % 360) for j in kept]
        if len(kept) < budget and all(angle >= 45.5 for angle in away):
            kept.append(i)
    limit = float(np.cos(np.radians(45.5)))
    assert keep(Deita(threshold=limit), scores_of(values, at(*degrees)), budget) == sorted(kept)


# --- kmeans


def test_kmeans_takes_the_best_of_every_cluster():
    scores = scores_of([1, 2, 3, 30, 20, 10, 9, 8], at(0, 1, 2, 100, 101, 102, 200, 201))
    assert keep(KMeans(clusters=3), scores, 3) == [2, 3, 6]
    assert keep(KMeans(clusters=3), scores, 6) == [1, 2, 3, 4, 6, 7]
    selection = KMeans(clusters=3).select(scores, Budget.parse(3))
    assert selection.reasons() == {"below its cluster's quota": 5}


def test_what_a_cluster_cannot_fill_goes_to_the_others():
    scores = scores_of(range(9), at(0, 1, 2, 3, 4, 5, 6, 7, 200))
    assert keep(KMeans(clusters=2), scores, 6) == [3, 4, 5, 6, 7, 8]


def test_rows_that_do_not_divide_go_to_the_larger_cluster():
    scores = scores_of(range(7), at(0, 1, 90, 91, 92, 200, 201))
    assert keep(KMeans(clusters=3), scores, 4) == [1, 3, 4, 6]


def test_proportional_shares():
    scores = scores_of(range(12), at(*range(9), 120, 121, 122))
    assert keep(KMeans(clusters=2), scores, 4) == [7, 8, 10, 11]
    assert keep(KMeans(clusters=2, share="proportional"), scores, 4) == [6, 7, 8, 11]


def test_nearest_to_the_centre():
    scores = scores_of([9, 1, 8, 7, 1, 6], at(0, 10, 22, 200, 210, 222))
    assert keep(KMeans(clusters=2, inner="centre"), scores, 2) == [1, 4]
    assert keep(KMeans(clusters=2), scores, 2) == [0, 3]


def test_tokens_are_spent_over_the_clusters_in_turn():
    scores = scores_of(range(8), at(*range(6), 200, 201), response_tokens=[10] * 8)
    selection = KMeans(clusters=2).select(scores, Budget.parse("40-tokens"))
    assert rows(selection) == [4, 5, 6, 7]
    assert selection.reasons() == {"below the budget": 4}


def test_the_pre_experience_of_ifd():
    """100 clusters and 10 of each: 1,000 examples."""
    vectors = random_unit(3000, 8)
    scores = scores_of(np.random.default_rng(1).normal(size=3000), vectors)
    kept = keep(KMeans(), scores, 1000)
    labels = kmeans(scores.vectors, 100, 0).labels  # ids are in input order, and so are k-means' rows
    sizes = np.bincount(labels, minlength=100)
    assert len(kept) == 1000 and sizes.min() >= 10
    assert np.bincount(labels[kept], minlength=100).tolist() == [10] * 100
    for cluster in range(100):
        inside = [i for i in kept if labels[i] == cluster]
        others = [i for i in np.flatnonzero(labels == cluster) if i not in inside]
        assert min(scores.values[inside]) > max(scores.values[others], default=-np.inf)


def test_fewer_prompts_than_clusters():
    scores = scores_of(range(6), at(0, 0, 0, 90, 90, 90))
    assert keep(KMeans(), scores, 2) == [2, 5]


def test_the_seed_of_kmeans_matters_and_the_order_does_not():
    vectors, order = random_unit(300, 5), np.random.default_rng(3).permutation(300)
    scores = scores_of(np.random.default_rng(1).permutation(300), vectors)
    moved = Scores([scores.ids[i] for i in order], scores.values[order], vectors=scores.vectors[order])
    for inner in ("top", "centre"):
        one = KMeans(clusters=20, inner=inner).select(scores, Budget.parse(40))
        assert set(one.kept) == set(KMeans(clusters=20, inner=inner).select(moved, Budget.parse(40)).kept)
        assert one.kept != KMeans(clusters=20, inner=inner, seed=1).select(scores, Budget.parse(40)).kept


# --- per prompt


def test_the_best_response_of_every_prompt():
    scores = scores_of([1, 3, 2, 5, 4, NAN, 0], prompt=list("aaabbcc"))
    selection = PerPrompt().select(scores, Budget.parse(10))
    assert rows(selection) == [1, 3, 6]
    assert selection.reasons() == {"another response to its prompt is better": 3, "no response token left": 1}
    assert keep(PerPrompt(n=2), scores, 10) == [1, 2, 3, 4, 6]


def test_the_budget_goes_to_the_survivors_by_rank():
    scores = scores_of([1, 3, 2, 5, 4, NAN, 0], prompt=list("aaabbcc"), response_tokens=[9] * 7)
    for budget in (2, "30%", "26-tokens"):
        assert keep(PerPrompt(), scores, budget) == [1, 3]
    reasons = PerPrompt().select(scores, Budget.parse(2)).reasons()
    assert reasons["below the budget"] == 1 and reasons["another response to its prompt is better"] == 3


def test_of_equally_good_responses_the_first():
    assert keep(PerPrompt(), scores_of([1, 1, 1, 1], prompt=list("abab")), 10) == [0, 1]


def test_prompts_are_needed():
    assert PerPrompt.reads == ("prompt",)
    with pytest.raises(SettingsError, match="`per-prompt` needs the column `prompt`"):
        PerPrompt().select(scores_of([1.0]), Budget.parse(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KCenter(start="x"), "`start` is `best` or `central`, not `x`"),
        (lambda: KCenter(pool=0), "above 0 and at most 1, not 0"),
        (lambda: KCenter(pool=NAN), "not nan"),
        (lambda: FacilityLocation(weight=-1), "not -1"),
        (lambda: FacilityLocation(weight=float("inf")), "not inf"),
        (lambda: Deita(threshold=0), "above 0 and at most 1, not 0"),
        (lambda: Deita(threshold=1.1), "not 1.1"),
        (lambda: KMeans(clusters=0), "at least 1, not 0"),
        (lambda: KMeans(inner="x"), "not `x`"),
        (lambda: KMeans(share="x"), "not `x`"),
        (lambda: PerPrompt(n=0), "at least 1, not 0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(SettingsError, match=message):
        make()
