"""Tests that draw: whatever fails is printed with what repeats it, PyTorch's numbers included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


def test_a_failing_draw_is_printed_with_the_line_that_repeats_it():
    @settings(database=None, max_examples=20)
    @given(number=st.integers(0, 1000))
    def fail(number):
        assert number < 10

    with pytest.raises(AssertionError) as failure:
        fail()
    notes = "\n".join(failure.value.__notes__)
    assert "number=10" in notes
    assert "@reproduce_failure(" in notes


def test_random_numbers_beside_a_draw_are_those_of_its_repetition():
    drawn = {"torch": set(), "numpy": set()}

    @settings(database=None, max_examples=5)
    @given(st.integers())
    def draw(number):
        drawn["torch"].add(torch.rand(1).item())
        drawn["numpy"].add(np.random.rand())

    draw()
    assert {name: len(values) for name, values in drawn.items()} == {"torch": 1, "numpy": 1}


def test_the_time_that_a_draw_takes_is_no_failure():
    assert settings().deadline is None
