"""What is said of a finished run: within the drop or not, and why."""

import pytest

from kdprune.compression import Request, verdict

MET = {
    "met": True,
    "chosen": "PTQ",
    "message": "the budget is met",
    "attempts": [{"name": "PTQ", "drop_bound": 0.008, "images": 400}],
}
NOT_MET = {**MET, "met": False, "message": "the budget can't be met: 1.20 points"}


def request(**asked):
    return Request("net.keras", "photos", **{"max_drop": 0.01} | asked)


def entries(difference, interval=(-0.03, 0.01)):
    against = {"difference": difference, "difference_ci": list(interval)}
    return {"int8_int8": {"against_baseline": against}}


def test_a_file_that_is_proven_and_measured_to_be_good_has_no_reason_against_it():
    for difference in (0.002, 0.0, -0.01):
        assert verdict._reasons(request(), MET, entries(difference), "accuracy") == []
    said = verdict._verdict(request(), [], MET, "accuracy")
    assert said.startswith("Within 1 point: by 'PTQ'")
    assert "at most 0.80 points of the original's accuracy" in said
    assert "on 400 validation images" in said
    assert "Within 2 points" in verdict._verdict(
        request(max_drop=0.02), [], MET, "accuracy"
    )
    assert "smaller network's" in verdict._verdict(
        request(ratio=0.5), [], MET, "accuracy"
    )


def test_a_file_without_proof_is_not_within_whatever_the_test_images_say():
    reasons = verdict._reasons(request(), NOT_MET, entries(0.0), "accuracy")
    assert reasons == [NOT_MET["message"]]
    said = verdict._verdict(request(), reasons, NOT_MET, "accuracy")
    assert said == f"Not within 1 point:\n- {NOT_MET['message']}"


@pytest.mark.parametrize(
    ("interval", "chance"), [((-0.05, 0.01), True), ((-0.03, -0.02), False)]
)
def test_a_file_that_loses_more_on_the_test_images_is_not_within(interval, chance):
    (reason,) = verdict._reasons(request(), MET, entries(-0.025, interval), "macro F1")
    low, high = -100 * interval[1], -100 * interval[0]
    assert f"loses 2.50 points ({low:.2f} to {high:.2f})" in reason
    assert "of the original's macro F1" in reason
    assert ("more test images would tell" in reason) == chance


def test_rows_stand_in_columns():
    lines = verdict._aligned([("", "ms"), ("original", "0.1"), ("int8", "12.25")])
    assert lines == ["             ms", "original    0.1", "int8      12.25"]
