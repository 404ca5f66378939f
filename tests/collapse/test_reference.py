"""Every value against the independent float64 reference, both ways of computing, both precisions."""

import json

import numpy as np
import pytest

from tests.collapse.conftest import SHARED, cached, case, streamed

SETS = ["balanced", "imbalanced", "a", "b", "c"]
SHARES = ("nc4_agree", "ncc_accuracy", "linear_accuracy")
COUNTS = ("rank_Sb", "n", "K", "D")
OOD = {"nc5_ood_orth", "neco_auroc"}
NOT_OURS = {"nc1_pinv (svd)"}  # a peer's second algorithm for the same number


def bound(name: str, key: str, precision: str) -> float:
    """Relative error allowed: the project's accuracy table."""
    if key in COUNTS or key.startswith(SHARES):
        return 1e-15  # counts, divided
    if precision == "fast":
        return 1e-6
    if name != "c":
        return 1e-10
    if key == "nc1_vci" or ("nc2g" in key and "var" in key):
        return 1e-8
    return 1e-10 if key.startswith(("nc1", "nc2g")) else 1e-9


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("way", [cached, streamed])
@pytest.mark.parametrize("name", SETS)
def test_every_value_is_the_references(name, way, precision):
    arrays, expected = case(name)
    expected = {k: v for k, v in expected.items() if k not in NOT_OURS | (OOD if way is streamed else set())}
    got = way(arrays, precision=precision)
    assert expected.keys() <= got.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=bound(name, key, precision), atol=1e-15, err_msg=key)


def test_the_sample_weighting_centres_on_the_sample_mean():
    arrays, expected = case("imbalanced")
    got = cached(arrays, weighting="sample")
    for key in ("nc1_pinv", "nc1_quotient", "nc3_dual_etf", "nc4_Whb"):
        assert got[key] == pytest.approx(expected[f"{key}__centre_sample"], rel=1e-10)


def test_scale_and_ddof_are_arguments():
    arrays, expected = case("balanced")
    assert cached(arrays, scale_by_K=False)["nc1_pinv"] == pytest.approx(3 * expected["nc1_pinv"], rel=1e-12)
    by_one = cached(arrays, ddof=1)
    assert by_one["nc2_equinorm_M"] == pytest.approx(expected["nc2_equinorm_M__ddof1"], rel=1e-12)


@pytest.mark.parametrize(("peer", "weighting"), [("rhubarbwu", "balanced"), ("tding1", "sample")])
@pytest.mark.parametrize("name", ["a", "b"])
def test_the_conventions_reproduce_published_code(name, peer, weighting):
    """Their own float64 output; un-suffixed keys under the weighting that is documented as theirs."""
    arrays, _ = case(name)
    got = cached(arrays, weighting=weighting)
    for key, entry in json.loads((SHARED / "values.json").read_text())[name].items():
        value = entry[f"{peer}_f64"]
        if value is None or key in NOT_OURS or key.startswith("nc4_agree_bias"):  # rhubarbwu's head has no bias
            continue
        assert got[key] == pytest.approx(value, rel=1e-6), key
        if weighting == "sample":
            assert got[key.removesuffix("__centre_sample")] == pytest.approx(value, rel=1e-6), key
