"""The analysis of a reader study: published values, independent computations, and what may be concluded."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study import merit, mrmc
from MedDPMLib.study.agreement import agree, agree_with_oneself, cohen_kappa, intraclass
from MedDPMLib.study.detection import detect, proportion, sensitivity_index
from MedDPMLib.study.equivalence import expected_power, two_one_sided_tests
from MedDPMLib.study.exports import write_imrmc, write_rjafroc
from MedDPMLib.study.likert import compare_domains
from MedDPMLib.study.mrmc import Estimate
from MedDPMLib.study.power import Variance, expect
from MedDPMLib.study.report.conclusion import conclude
from MedDPMLib.study.simulate import Readers, simulate
from MedDPMLib.study.table import Ratings, ratings_of, read_table

GOLDEN = json.loads((Path(__file__).parent / "golden" / "van_dyke.json").read_text(encoding="utf-8"))
TABLE = Path(__file__).parents[2] / "shared" / "data" / "mrmc" / "van_dyke.csv"
needs_table = pytest.mark.skipif(not TABLE.is_file(), reason="the ratings of Van Dyke et al. are not at hand")


def some_ratings(seed=0, treatments=2, readers=3, abnormal=9, normal=12) -> Ratings:
    rng = np.random.default_rng(seed)
    truth = np.arange(abnormal + normal) < abnormal
    values = rng.integers(1, 7, (treatments, readers, len(truth))) + 2.0 * truth * rng.random(len(truth))
    names = [tuple(f"{kind}{n}" for n in range(many)) for kind, many in (("t", treatments), ("r", readers))]
    return Ratings(np.rint(values), truth, *names, tuple(f"c{n}" for n in range(len(truth))))


def as_printed(value: float, printed: float) -> None:
    """``value`` rounded to the digits of ``printed`` is ``printed``."""
    digits = len(repr(printed).partition(".")[2]) if "e" not in repr(printed) else 8
    assert round(value, digits) == printed, (value, printed)


# Published values ------------------------------------------------------------------------------------


@needs_table
def test_every_value_of_van_dyke_to_its_last_printed_digit(meddpm, tmp_path):
    assert meddpm("study", "analyze", "--table", TABLE, "--json", tmp_path / "out.json").returncode == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["cases"] == GOLDEN["cases"] and len(found["readers"]) == GOLDEN["readers"]
    for treatment in ("1", "2"):
        for value, printed in zip(found["auc"][treatment], GOLDEN["auc"][treatment], strict=True):
            as_printed(value, printed)
        as_printed(found["mean"][treatment], GOLDEN["mean_auc"][treatment])
        one, printed = found["single"][treatment], GOLDEN["random_readers_random_cases"]["single"][treatment]
        for key, name in (("se", "std_err"), ("df", "df"), ("value", "auc"), ("cov2", "cov2")):
            as_printed(one[key], printed[name])
        for value, limit in zip(one["ci"], printed["ci"], strict=True):
            as_printed(value, limit)
        as_printed(one["ms_readers"], GOLDEN["mean_squares"][f"R_treatment_{treatment}"])
        fixed = GOLDEN["fixed_readers_random_cases"]["single"][treatment]
        as_printed(one["fixed_readers"]["se"], fixed["std_err"])
        for value, limit in zip(one["fixed_readers"]["ci"], fixed["ci"], strict=True):
            as_printed(value, limit)
    for key in ("cov1", "cov2", "cov3", "var_error", "var_R", "var_TR"):
        as_printed(found[key], GOLDEN["components"][key])
    for key in ("T", "R", "TR"):
        as_printed(found["mean_squares"][key], GOLDEN["mean_squares"][key])
    random = GOLDEN["random_readers_random_cases"]
    for key in ("F", "ddf", "p"):
        as_printed(found[key], random[key])
    difference = found["differences"][0]
    as_printed(difference["value"], GOLDEN["difference"])
    as_printed(difference["se"], random["std_err_difference"])
    fixed = GOLDEN["fixed_readers_random_cases"]
    for values, printed in ((difference["ci"], random), (difference["fixed_readers"]["ci"], fixed)):
        for value, limit in zip(values, printed["ci_difference"], strict=True):
            as_printed(value, limit)
    as_printed(found["fixed_readers"]["chi2"], fixed["chi2"])
    as_printed(found["fixed_readers"]["p"], fixed["p"])
    for key in ("F", "ddf", "p"):
        as_printed(found["fixed_cases"][key], GOLDEN["random_readers_fixed_cases"][key])


# Independent computations ----------------------------------------------------------------------------


@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_figures_of_merit_are_what_leaving_out_each_case_gives(seed):
    ratings = some_ratings(seed)
    cut = 3.5

    def balanced(truth, values):
        said = values > cut
        return ((said & truth).sum() / truth.sum() + (~said & ~truth).sum() / (~truth).sum()) / 2

    def recall(truth, values):
        return (values > cut)[truth].mean()

    def reject(truth, values):
        return (values <= cut)[~truth].mean()

    merits = (
        (merit.auc(ratings), roc_auc_score),
        (merit.accuracy(ratings, cut), balanced),
        (merit.sensitivity(ratings, cut), recall),
        (merit.specificity(ratings, cut), reject),
    )
    for found, value in merits:
        for t, r in np.ndindex(found.value.shape):
            values = ratings.values[t, r]
            assert found.value[t, r] == pytest.approx(value(ratings.truth, values), abs=1e-12)
            without = [value(np.delete(ratings.truth, c), np.delete(values, c)) for c in range(len(values))]
            np.testing.assert_allclose(found.without[t, r], without, atol=1e-12)


def test_jackknife_covariance_is_that_of_pseudovalues():
    found = merit.auc(some_ratings())
    cases = found.without.shape[2]
    pseudo = cases * found.value[..., None] - (cases - 1) * found.without
    np.testing.assert_allclose(
        mrmc.jackknife_covariance(found).reshape(6, 6), np.cov(pseudo.reshape(6, cases)) / cases, rtol=1e-10
    )


def test_one_reader_has_an_interval_for_cases_only():
    found = mrmc.single(merit.auc(some_ratings(readers=1)))
    assert found.random is None and found.fixed.ci[0] < found.fixed.value < found.fixed.ci[1]


def test_two_one_sided_tests_agree_with_the_interval_and_with_statsmodels():
    from statsmodels.stats.weightstats import DescrStatsW

    rng = np.random.default_rng(1)
    for center in (0.5, 0.56, 0.62):
        sample = center + 0.08 * rng.standard_normal(15)
        estimate = Estimate(sample.mean(), sample.std(ddof=1) / np.sqrt(15), 14, (0, 0))
        found = two_one_sided_tests(estimate, 0.1)
        assert found.p == pytest.approx(DescrStatsW(sample).ttost_mean(0.4, 0.6)[0])
        assert found.shown == (0.4 < found.ci[0] and found.ci[1] < 0.6)


def test_sensitivity_index_follows_the_closed_form():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal(200_000) + 0.75, rng.standard_normal(200_000) - 0.75])
    truth = np.arange(400_000) < 200_000
    said = x > 0.3  # d' = 1.5, criterion 0.3
    d_prime, criterion = sensitivity_index((said & truth).sum(), 200_000, (said & ~truth).sum(), 200_000)
    assert d_prime == pytest.approx(1.5, abs=0.02) and criterion == pytest.approx(0.3, abs=0.01)


def test_a_reader_who_always_says_the_same_is_described():
    truth = np.arange(20) < 10
    found = detect(np.ones(20), truth, 3.5)
    assert (found.auc, found.sensitivity.value, found.specificity.value) == (0.5, 0.0, 1.0)
    assert found.d_prime == 0 and found.criterion > 1
    agreement = agree(np.ones((3, 20)), ("a", "b", "c"), 3.5)
    assert agreement.fleiss is None and agreement.icc_2_1 is None and set(agreement.pairs.values()) == {None}


def test_exact_interval_is_the_one_of_the_binomial_distribution():
    from scipy.stats import binom

    low, high = proportion(7, 20).ci
    assert binom.sf(6, 20, low) == pytest.approx(0.025, abs=1e-6)
    assert binom.cdf(7, 20, high) == pytest.approx(0.025, abs=1e-6)


def test_agreement_of_known_tables():
    first, second = np.array([1] * 20 + [6] * 5 + [1] * 10 + [6] * 15), np.array([1] * 25 + [6] * 25)
    assert cohen_kappa(first > 3, second > 3) == pytest.approx(0.4)  # 35 of 50 agree, half by chance
    repeated = agree_with_oneself(first.astype(float), first.astype(float), 3.5)
    assert (repeated.same, repeated.number, repeated.kappa) == (50, 50, 1.0)
    # Shrout and Fleiss, Psychol. Bull. 86 (1979) 420: six targets, four judges: 0.29 and 0.62
    judges = np.array([[9, 6, 8, 7, 10, 6], [2, 1, 4, 1, 5, 2], [5, 3, 6, 2, 6, 4], [8, 2, 8, 6, 9, 7]], float)
    one, mean = intraclass(judges)
    assert round(one[0], 2) == 0.29 and round(mean[0], 2) == 0.62


def test_a_domain_that_differs_is_found_and_corrected():
    rng = np.random.default_rng(0)
    truth = np.arange(40) < 20
    same = rng.integers(1, 6, (8, 40)).astype(float)
    worse = np.clip(same - 2 * truth, 1, 5)
    cortex, vessels = compare_domains({"cortex": same, "vessels": worse}, truth)
    assert vessels.p_holm < 0.05 < cortex.p_holm and vessels.test.startswith("signed rank")
    assert vessels.p_holm == pytest.approx(2 * vessels.p)
    assert cortex.counts.sum() == same.size and vessels.median_synthetic < vessels.median_real


def test_expected_power_is_what_simulated_studies_show():
    population = Readers(0.0, spread=0.15, lapses=0.0, shared=0.3)
    found = simulate(population, readers=10, synthetic=40, real=40, margin=0.12, studies=300, seed=4)
    # The components that this population has, from many studies.
    components = []
    for seed in range(60):
        ratings = population.draw(10, 40, 40, np.random.default_rng(seed))
        one = mrmc.single(merit.auc(ratings))
        components.append((one.var_error, one.cov2, one.mean_square_readers - one.var_error + one.cov2))
    power, half_width = expected_power(10, *np.mean(components, axis=0), 0.12)
    assert found.shown / found.studies == pytest.approx(power, abs=0.12)
    assert found.half_width == pytest.approx(half_width, rel=0.1)
    assert expect(10, 40, 40, 0.12).power < expect(10, 80, 80, 0.12).power
    needed = expect(10, 40, 40, 0.12).cases_needed
    assert expect(10, needed, needed, 0.12).power >= 0.8 > expect(10, needed - 1, needed - 1, 0.12).power
    error, cov2 = Variance().errors(30, 30)
    assert error == pytest.approx(61 / (12 * 900)) and cov2 < error


# Simulated readers -----------------------------------------------------------------------------------


def test_true_auc_of_simulated_readers_is_the_mean_of_many():
    population = Readers(0.8, spread=0.3, bias=0.2, lapses=0.05)
    many = merit.auc(population.draw(100, 250, 250, np.random.default_rng(0))).value.mean()
    assert population.mean_auc() == pytest.approx(many, abs=0.03)
    assert population.with_mean_auc(0.6).mean_auc() == pytest.approx(0.6)


def test_intervals_cover_and_the_equivalence_test_keeps_its_level():
    """A small version of ``meddpm study simulate``: within three standard errors of 150 studies."""
    given = Readers(0.5)
    covered = simulate(given, readers=8, synthetic=30, real=30, margin=0.1, studies=150, seed=0)
    assert 0.95 - 3 * 0.0178 <= covered.coverage <= 1
    edge = simulate(given.with_mean_auc(0.6), readers=8, synthetic=30, real=30, margin=0.1, studies=150, seed=1)
    assert edge.shown / edge.studies <= 0.05 + 3 * 0.0178


# What may be said ------------------------------------------------------------------------------------


@given(st.floats(0.2, 0.95), st.floats(0.001, 0.2), st.floats(0.02, 0.3), st.floats(1, 60))
@settings(max_examples=200, deadline=None)
def test_no_result_is_taken_for_a_proof_of_sameness(value, se, margin, df):
    from scipy import stats

    half = stats.t.ppf(0.975, df) * se
    estimate = Estimate(value, se, df, (value - half, value + half))
    found = two_one_sided_tests(estimate, margin)
    said = conclude("AUC", estimate, found)
    assert "indistinguishable" not in said.words and "cannot tell" not in said.words
    assert ("equivalent" in said.verdict) == (found.shown and not found.differs)
    if not found.shown:
        assert said.verdict in ("undecided", "difference") and "within the margin" not in said.words.split("nor")[0]
    else:
        assert f"{margin:g}" in said.words and abs(value - 0.5) < margin


def test_a_single_reader_concludes_nothing_for_others():
    assert conclude("AUC", Estimate(0.5, 0.01, np.inf, (0.48, 0.52)), None).verdict == "undecided"


# Files -----------------------------------------------------------------------------------------------


def write_csv(path: Path, ratings: Ratings, skip=()) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rating", "case", "truth", "reader", "treatment"])
        for t, r, c in np.ndindex(*ratings.values.shape):
            if (t, r, c) not in skip:
                row = ratings.values[t, r, c], ratings.cases[c], int(ratings.truth[c]), ratings.readers[r]
                writer.writerow([*row, ratings.treatments[t]])
    return path


def test_tables_are_read_in_any_order_of_columns_and_incomplete_cases_left_out(tmp_path):
    ratings = some_ratings()
    path = write_csv(tmp_path / "t.csv", ratings, skip={(1, 2, 4)})
    found = read_table(path)
    assert found.cases == tuple(sorted(set(ratings.cases) - {"c4"})) and "c4" in found.notes[0]
    order = [ratings.cases.index(case) for case in found.cases]
    np.testing.assert_array_equal(found.values, ratings.values[:, :, order])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"truth": "2"}, "neither 0 nor 1"),
        ({"case": "c", "rating": "high"}, "is not a number"),
        ({"case": "c", "rating": "nan"}, "is not a number"),
        ({"reader": " "}, "is empty"),
        ({"case": "b"}, "another truth|a second time"),
        ({}, "a second time"),
    ],
)
def test_what_is_wrong_in_a_table_is_said_with_its_line(change, said):
    row = {"reader": "x", "treatment": "t", "case": "a", "truth": "0", "rating": "1"}
    rows = [row, row | {"case": "b", "truth": "1"}, row | change]
    with pytest.raises(MedDPMError, match=said) as caught:
        ratings_of(rows, "table.csv", 2)
    assert "line 4" in str(caught.value)


def test_one_class_only_is_refused(tmp_path, meddpm):
    path = tmp_path / "one.csv"
    path.write_text("reader,treatment,case,truth,rating\n" + "".join(f"r,t,{n},1,3\n" for n in range(9)))
    run = meddpm("study", "analyze", "--table", path, "--json", tmp_path / "out.json")
    assert run.returncode == 2 and "cases of both kinds" in run.stderr and not (tmp_path / "out.json").exists()
    path.write_bytes(b"\xff\xfe\x00")
    assert "not a CSV file" in meddpm("study", "analyze", "--table", path, "--json", tmp_path / "out.json").stderr
    path.write_text("reader,case\n")
    assert "no column treatment, truth" in meddpm("study", "analyze", "--table", path, "--json", "o.json").stderr


def opened_as_imrmc_does(path):
    """The ratings in ``path`` by (modality, reader, case), and the truth by case, read by the rules of iMRMC's reader.

    It looks for the counts anywhere in a line of the header, in capitals, and takes what follows the third letter for
    the number; it cuts the last two letters off each line, which has to have them; rows that belong to no case, or a
    case that comes twice, are refused.
    """
    lines = path.read_text(encoding="ascii").splitlines()
    assert all(len(line) != 1 for line in lines)
    start = next(n for n, line in enumerate(lines) if line.upper().startswith("BEGIN DATA:"))
    counts = {}
    for line in (line.upper() for line in lines[:start]):
        for name in ("N0:", "N1:", "NR:", "NM:"):
            if name in line:
                counts[name] = int(line[3:])
    rows = [[field.strip() for field in line.split(",")] for line in lines[start + 1 :]]
    assert all(len(row) == 4 for row in rows)
    truths = [(case, score) for reader, case, _, score in rows if reader == "-1"]
    truth = dict(truths)
    assert len(truth) == len(truths) and set(truth.values()) <= {"0", "1"}
    ratings = {}
    for reader, case, modality, score in (row for row in rows if row[0] != "-1"):
        assert case in truth and (modality, reader, case) not in ratings
        ratings[modality, reader, case] = float(score)
    modalities, readers, _cases = (set(part) for part in zip(*ratings, strict=True))
    found = {"N0:": list(truth.values()).count("0"), "N1:": list(truth.values()).count("1")}
    assert counts == {**found, "NR:": len(readers), "NM:": len(modalities)}
    return ratings, truth


@pytest.mark.parametrize(
    "title", ["Ünicode\ntitle", "", "A", "Session0: can experts tell?", "Begin data: N1: x", "a,,"]
)
def test_imrmc_file_is_read_by_the_rules_of_its_reader(tmp_path, title):
    ratings = some_ratings()
    write_imrmc(tmp_path / "r.imrmc", ratings, title)
    found, truth = opened_as_imrmc_does(tmp_path / "r.imrmc")
    assert [truth[str(n + 1)] for n in range(21)] == [str(int(t)) for t in ratings.truth]
    assert len(found) == ratings.values.size
    for index, value in np.ndenumerate(ratings.values):
        assert found[tuple(str(n + 1) for n in index)] == value


def opened_as_rjafroc_does(path):
    """The ratings in the workbook ``path`` by (modality, reader, case), read by the rules of RJafroc's reader.

    Its sheets are found by name, columns by their headings; readers and modalities are words in the sheet Truth, which
    the other sheets have to use, split at commas; a normal case has the lesion 0, and each case has one row; the
    weights of a case add up to 1; the sheet FP has normal cases alone, TP every lesion, both exactly once for each
    reader and modality.
    """
    from openpyxl import load_workbook

    book = load_workbook(path)
    assert sorted(name.upper() for name in book.sheetnames) == ["FP", "TP", "TRUTH"]
    sheets = {}
    for sheet in book:
        head, *rows = sheet.values
        sheets[sheet.title.upper()] = [dict(zip(head, row, strict=True)) for row in rows]
        assert all(None not in row[:5] for row in rows)
    design = [row["Paradigm"] for row in sheets["TRUTH"] if row["Paradigm"] is not None]
    assert design == ["ROC", "FCTRL"]
    lesions = {row["CaseID"]: row["LesionID"] for row in sheets["TRUTH"]}
    assert len(lesions) == len(sheets["TRUTH"]) and set(lesions.values()) == {0, 1}
    assert all(row["Weight"] == 1 for row in sheets["TRUTH"] if row["LesionID"])
    (modalities,), (readers,) = (
        {tuple(row[name].replace(" ", "").split(",")) for row in sheets["TRUTH"]} for name in ("ModalityID", "ReaderID")
    )  # factorial: every case has been read by all
    found = {}
    for name, rating, is_abnormal in (("FP", "FP_Rating", 0), ("TP", "TP_Rating", 1)):
        for row in sheets[name]:
            key = str(row["ModalityID"]), str(row["ReaderID"]), row["CaseID"]
            assert key[0] in modalities and key[1] in readers and key not in found
            assert lesions[key[2]] == is_abnormal == row.get("LesionID", 0)
            found[key] = float(row[rating])
    assert len(found) == len(modalities) * len(readers) * len(lesions)
    return found


def test_rjafroc_workbook_is_read_by_the_rules_of_its_reader(tmp_path):
    ratings = some_ratings()
    write_rjafroc(tmp_path / "r.xlsx", ratings)
    found = opened_as_rjafroc_does(tmp_path / "r.xlsx")
    for (modality, reader, case), value in np.ndenumerate(ratings.values):
        assert found[str(modality + 1), str(reader + 1), case + 1] == value


def test_rjafroc_workbook_follows_its_documentation(tmp_path):
    from openpyxl import load_workbook

    ratings = some_ratings()
    write_rjafroc(tmp_path / "r.xlsx", ratings)
    book = load_workbook(tmp_path / "r.xlsx")
    assert book.sheetnames == ["Truth", "FP", "TP"]
    truth, normal, abnormal = (list(sheet.values) for sheet in book)
    assert truth[0] == ("CaseID", "LesionID", "Weight", "ReaderID", "ModalityID", "Paradigm")
    assert [row[1] for row in truth[1:]] == [int(t) for t in ratings.truth]
    assert truth[1][3:] == ("1, 2, 3", "1, 2", "ROC") and truth[2][5] == "FCTRL" and truth[3][5] is None
    assert normal[0] == ("ReaderID", "ModalityID", "CaseID", "FP_Rating") and len(normal) == 1 + 12 * 6
    assert abnormal[0] == ("ReaderID", "ModalityID", "CaseID", "LesionID", "TP_Rating") and len(abnormal) == 1 + 9 * 6
    for reader, modality, case, rating in normal[1:]:
        assert rating == ratings.values[modality - 1, reader - 1, case - 1] and not ratings.truth[case - 1]
    for reader, modality, case, lesion, rating in abnormal[1:]:
        assert rating == ratings.values[modality - 1, reader - 1, case - 1] and ratings.truth[case - 1] and lesion == 1
