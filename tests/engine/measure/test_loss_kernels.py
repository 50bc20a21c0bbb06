"""The fastest accurate kernel for likelihoods is chosen, on a model's own output matrix."""

from __future__ import annotations

import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers

from tests.engine.models import CONFIGS
from tithe.engine.forward.output_head import OutputHead, tiled_nll
from tithe.engine.measure import loss_kernels
from tithe.engine.measure.loss_kernels import OWN, LossKernel, choose_loss
from tithe.errors import ModelError

WIDTH, VOCABULARY = 32, 301


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_kernels, "ROWS", 96)
    monkeypatch.setattr(loss_kernels, "CHECKED", 40)


def matrix(dtype: torch.dtype = torch.float32, *, bias: bool = False) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, VOCABULARY, bias=bias).to(dtype)


def whole(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = (hidden @ weight.T).float()
    return -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def slowly(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    time.sleep(0.02)
    return whole(hidden, weight, targets)


def own_of(linear: torch.nn.Linear) -> object:
    return lambda hidden, targets: slowly(hidden, linear.weight, targets)


def test_the_fastest_true_one_is_taken_and_the_others_have_reasons() -> None:
    linear = matrix()

    def wrong(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return whole(hidden, weight, targets) + 0.01

    def bad(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel for this device\nat line 1")

    def missing(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise ModuleNotFoundError(name="liger_kernel")

    def slower(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        time.sleep(0.008)
        return whole(hidden, weight, targets)

    tiles = lambda hidden, weight, targets: tiled_nll(hidden, linear, targets)  # noqa: E731
    ways = {"wrong": wrong, "bad": bad, "missing": missing, "slower": slower, "tiles": tiles}
    taken = choose_loss(linear, own_of(linear), ways)
    assert taken.name == "tiles" and set(taken.milliseconds) == {OWN, "slower", "tiles"}
    assert taken.refused["wrong"].startswith("off by 0.01 nats from float32")
    assert taken.refused["bad"] == "RuntimeError: no kernel for this device"
    assert taken.refused["missing"] == "`liger_kernel` is not installed"
    assert "where `tiles` takes" in taken.refused["slower"] and OWN not in taken.refused
    assert set(taken.as_dict()) == {"name", "milliseconds", "largest_difference", "refused"}

    hidden, targets = torch.randn(7, WIDTH), torch.arange(7)
    with torch.inference_mode():
        found = taken.nll(hidden, targets)
        torch.testing.assert_close(found, whole(hidden, linear.weight, targets), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fault", ["mean", "nan in an unchecked row", "last target"])
def test_what_gives_other_numbers_is_not_taken(fault: str) -> None:
    linear = matrix()

    def way(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nll = whole(hidden, weight, targets)
        if fault == "mean":
            return nll.mean()
        nll[-1 if fault.startswith("nan") else 1] = float("nan") if fault.startswith("nan") else 0.0
        return nll

    taken = choose_loss(linear, own_of(linear), {"way": way})
    assert (taken.name, taken.kernel) == (OWN, None) and "off by" in taken.refused["way"]


def test_in_bf16_what_rounds_as_the_head_does_is_true_and_what_rounds_more_is_not() -> None:
    linear = matrix(torch.bfloat16)

    def again(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return whole(hidden, weight, targets)

    def coarse(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return whole(hidden, weight, targets).to(torch.float8_e4m3fn).float()

    taken = choose_loss(linear, own_of(linear), {"again": again, "coarse": coarse})
    assert taken.name == "again" and "coarse" in taken.refused


def test_one_that_is_hardly_faster_is_not_worth_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.00, 0.97])
    monkeypatch.setattr(loss_kernels, "elapsed", lambda call, device, rounds: next(seconds))
    linear = matrix()
    taken = choose_loss(linear, own_of(linear), {"again": whole})
    assert taken.name == OWN and taken.refused["again"] == "970 ms where `head as it is` takes 1e+03 ms"


def test_a_kernel_whose_bits_change_is_not_taken() -> None:
    linear, calls = matrix(), iter(range(100))

    def restless(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return whole(hidden, weight, targets) + next(calls) * 1e-6

    taken = choose_loss(linear, own_of(linear), {"restless": restless})
    assert taken.name == OWN and taken.refused == {"restless": "its last bits change from call to call"}


def test_a_run_goes_on_with_what_it_began_with() -> None:
    linear = matrix()
    ways = {"quick": whole, "slow": slowly}
    assert choose_loss(linear, own_of(linear), ways).name == "quick"
    for begun in (OWN, "slow"):
        taken = choose_loss(linear, own_of(linear), ways, begun)
        assert (taken.name, taken.kernel) == (begun, ways.get(begun))
    with pytest.raises(ModelError, match="the run began with the likelihood kernel `gone`, which cannot be used here"):
        choose_loss(linear, own_of(linear), ways, "gone")


def test_a_matrix_with_a_bias_keeps_the_head() -> None:
    linear = matrix(bias=True)
    assert choose_loss(linear, own_of(linear), {"way": whole}).refused == {"way": "the output matrix has a bias"}


def test_the_truth_is_the_cross_entropy_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix().weight.detach().repeat(70, 1)  # more than one part of the vocabulary
    hidden, targets = torch.randn(5, WIDTH), torch.tensor([0, 1, 16_384, 16_383, len(weight) - 1])
    wanted = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="none")
    torch.testing.assert_close(loss_kernels.exact(hidden, weight, targets).double(), wanted, rtol=1e-6, atol=1e-5)


def test_how_the_two_packages_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, bool]] = []

    def fused(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, reduction: str) -> torch.Tensor:
        calls.append((reduction, weight.requires_grad))
        return whole(hidden, weight, targets)

    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    functional = SimpleNamespace(liger_fused_linear_cross_entropy=fused)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", functional)  # type: ignore[arg-type]
    cce = SimpleNamespace(linear_cross_entropy=fused)
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", cce)  # type: ignore[arg-type]
    monkeypatch.setattr(loss_kernels, "compiled_step", lambda: loss_kernels.log_sum_exp)
    linear = matrix()
    taken = choose_loss(linear, own_of(linear))
    assert taken.name != OWN and set(calls) == {("none", False)}
    assert set(taken.milliseconds) == {OWN, "torch.compile", "liger-kernel", "cut-cross-entropy"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 8, 33])
def test_the_compiled_way_is_cross_entropy_some_rows_at_a_time(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is traced, not compiled; logits rounded to the model's dtype are those of the plain head."""
    seen: list[int] = []

    def step(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(logits))
        return loss_kernels.log_sum_exp(logits, targets)

    monkeypatch.setattr(loss_kernels, "compiled_step", lambda: step)
    monkeypatch.setattr(loss_kernels, "LOGITS", 8 * VOCABULARY)
    monkeypatch.setattr(loss_kernels, "LEAST_ROWS", 2)
    weight, hidden = matrix(dtype).weight.detach(), torch.randn(rows, WIDTH).to(dtype) * 3
    targets = torch.arange(rows) * 9
    found = loss_kernels.by_compiled(hidden, weight, targets)
    wanted = torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
    assert found.dtype == torch.float32 and seen == [8] * (rows // 8) + [rows % 8] * (rows % 8 > 1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_head_takes_what_was_chosen_and_on_a_cpu_nothing_is() -> None:
    model = transformers.LlamaForCausalLM(CONFIGS["llama"]()).eval()
    head = OutputHead(model)
    assert head.loss is None and head.matrix is not None
    hidden, targets = torch.randn(70, head.matrix.in_features), torch.arange(70)
    with torch.inference_mode():
        before = head.nll(hidden, targets)
        head.loss = LossKernel("whole", weight=head.matrix.weight.detach(), kernel=whole)
        torch.testing.assert_close(head.nll(hidden, targets), before, rtol=1e-5, atol=1e-5)
        head.loss = LossKernel("other", weight=head.matrix.weight.detach(), kernel=lambda *args: whole(*args) + 1)
        torch.testing.assert_close(head.nll(hidden, targets), before + 1, rtol=1e-5, atol=1e-5)
        head.loss = LossKernel(OWN)
        torch.testing.assert_close(head.nll(hidden, targets), before)
