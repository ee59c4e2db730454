"""Costs of compiled programs, and what is said of targets."""

import importlib.util
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from fpjax import cli
from fpjax.core.environment import computes_bfloat16
from fpjax.core.roofline import Cost, Kernel, analyse
from fpjax.models.kernels import kernels_work
from fpjax.run import pipeline
from fpjax.run.aot import largest_slots
from fpjax.run.config import by_device, make_config
from fpjax.run.stages import open_job
from fpjax.run.targets import TARGETS, Compiled, compile_for
from fpjax.run.timing import Program

from .test_config import config_of

CUDNN = """HloModule m
ENTRY %main (x: bf16[2,4,4,8], k: bf16[3,3,8,16]) -> bf16[2,4,4,16] {
  %x = bf16[2,4,4,8]{3,2,1,0} parameter(0)
  %k = bf16[3,3,8,16]{3,2,1,0} parameter(1)
  %c = (bf16[2,4,4,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/UNet/conv_in/conv"}
  ROOT %g = bf16[2,4,4,16]{3,2,1,0} get-tuple-element(%c), index=0
}
"""
LOOP = """HloModule m
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %s = f32[] add(%a, %a)
}
%body (p: (f32[8])) -> (f32[8]) {
  %p = (f32[8]{0}) parameter(0)
  %v = f32[8]{0} get-tuple-element(%p), index=0
  %n = f32[8]{0} negate(%v), metadata={op_name="norm1"}
  %r = f32[8]{0} all-reduce(%n), to_apply=%add
  ROOT %t = (f32[8]{0}) tuple(%r)
}
ENTRY %main (x: f32[8]) -> (f32[8]) {
  %x = f32[8]{0} parameter(0)
  %i = token[] infeed(%x)
  ROOT %w = (f32[8]{0}) while(%x), condition=%add, body=%body
}
"""


def test_a_convolution_costs_its_products_and_its_arrays():
    (kernel,) = analyse(CUDNN).kernels
    assert kernel.flops == 2 * 9 * 8 * (2 * 4 * 4 * 16)
    assert kernel.bytes == 2 * (2 * 4 * 4 * 8 + 9 * 8 * 16 + 2 * 4 * 4 * 16)
    assert (kernel.part, kernel.float32) == ("convolutions", False)
    assert analyse(CUDNN.replace("bf16", "f32")).float32 == {"convolutions": 1}


def test_of_a_loop_one_pass_counts_and_transfers_count_everywhere():
    cost = analyse(LOOP)
    assert [kernel.kind for kernel in cost.kernels] == ["negate", "all-reduce"]
    assert (cost.bytes, cost.host, cost.collective_bytes) == (2 * 64, 1, 32)
    assert cost.parts() == [("norms", 0.5), ("other", 0.5)]


@pytest.mark.parametrize(("m", "k", "n"), [(64, 32, 16), (8, 128, 8)])
def test_products_are_counted_in_programs_of_this_machine(m, k, n):
    compiled = jax.jit(jnp.dot).lower(jnp.ones((m, k)), jnp.ones((k, n))).compile()
    assert analyse(compiled.as_text()).flops == 2 * m * k * n


def test_the_bound_is_the_longer_of_arithmetic_and_memory_for_each_kernel():
    cost = Cost((Kernel("a", "other", 100, 10.0, False), Kernel("b", "other", 10, 1000.0, False)), 0, 0, 0)
    assert cost.bound(10.0, 10.0) == pytest.approx(10 + 100)


def test_the_largest_slots_are_on_the_line_through_two_programs():
    def taking(size):
        return Compiled(Cost((), 0, 0, 0), 0, size)

    assert (
        largest_slots({256: taking(10_000), 1024: taking(10_000 + 768 * 10)}, 40_000) == (26_000 // 10 + 256) // 32 * 32
    )
    assert largest_slots({1: taking(100), 4: taking(400)}, 1000) == 9
    assert largest_slots({256: taking(100), 1024: taking(110)}, 10**12) == 2**16
    assert largest_slots({1: taking(100)}, 10) == 1


def test_targets_are_refused_by_name_and_without_their_compiler(capsys, monkeypatch, tmp_path):
    options = {"workdir": str(tmp_path / "run"), "stages": ["benchmark"]}
    assert pipeline.main(config_of("smoke"), target="a100", **options) == 2
    assert "--target: got 'a100', expected one of h100, h200, v5e, v6e" in capsys.readouterr().err
    assert pipeline.main(config_of("smoke"), target="h100", workdir=str(tmp_path / "run")) == 2
    assert "--target: got stages all, expected --stage=benchmark" in capsys.readouterr().err
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if "cuda" in name or name == "libtpu" else found(name, *rest),
    )
    for target, package in (("h200", "jax-cuda12-plugin=="), ("v6e", "'jax[tpu]==")):
        assert pipeline.main(config_of("smoke"), target=target, **options) == 2
        said = capsys.readouterr().err
        assert "got no compiler" in said
        assert package in said
    assert not (tmp_path / "run").exists()


def test_the_command_line_names_the_targets():
    assert all(name in flags.FLAGS["target"].help for name in TARGETS)
    assert "--target=h200" in (cli.__doc__ or "")


def test_programs_compile_from_shapes_alone():
    shape = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    one = compile_for(jax.devices()[0], Program(lambda x: x @ x.T, (shape,), 4))
    assert one.cost.flops == 2 * 4 * 8 * 4
    assert one.bytes >= 4 * (4 * 8 + 4 * 4)


class TestAuto:
    """Fields that are left to the device."""

    def test_without_a_device_they_are_float32_and_xla(self):
        raw = config_of("smoke")
        assert by_device(raw) == ("model.dtype", "model.kernels", "resnet.dtype")
        made = make_config(raw)
        assert (made.model.dtype, made.model.kernels, made.resnet.dtype) == ("float32", "xla", "float32")
        made = make_config(raw, auto={"model.dtype": "bfloat16"})
        assert (made.model.dtype, made.resnet.dtype) == ("bfloat16", "float32")
        raw.model.dtype = "float32"
        assert make_config(raw, auto={"model.dtype": "bfloat16"}).model.dtype == "float32"

    @pytest.mark.parametrize(
        ("platform", "capability", "native"),
        [
            ("cpu", None, False),
            ("tpu", None, True),
            ("gpu", "9.0", True),
            ("gpu", "8.0", True),
            ("gpu", "7.5", False),
            ("gpu", "gfx942", False),
        ],
    )
    def test_bfloat16_is_native_on_tpus_and_since_ampere(self, platform, capability, native):
        device = SimpleNamespace(platform=platform, **({"compute_capability": capability} if capability else {}))
        assert computes_bfloat16(device) == native

    def test_a_run_goes_on_in_the_type_that_it_was_begun_in(self, tmp_path, capsys):
        options = {"workdir": str(tmp_path / "run"), "stages": ["data"]}
        raw = config_of("smoke")
        raw.model.dtype = "bfloat16"
        assert pipeline.main(raw, **options) == 0
        assert "bfloat16 is not native on cpu" in capsys.readouterr().err
        assert pipeline.main(config_of("smoke"), **options) == 0
        said = capsys.readouterr().err
        assert "model.dtype: bfloat16, as this run was begun; on this device auto is float32" in said
        raw.model.dtype = "float32"
        assert pipeline.main(raw, **options) == 2

    def test_devices_that_share_a_batch_train_by_plain_xla(self, tmp_path, monkeypatch):
        made = make_config(config_of("smoke"), auto={"model.kernels": "pallas"})
        for devices, kernels in ((1, "pallas"), (4, "xla")):
            monkeypatch.setattr(jax, "local_device_count", lambda devices=devices: devices)
            job = open_job(made, tmp_path)
            assert job.training_model.settings.kernels == kernels
            assert job.model.settings.kernels == "pallas"

    def test_kernels_are_held_against_plain_jax_before_auto_takes_them(self, monkeypatch):
        assert kernels_work()
        monkeypatch.setattr("fpjax.models.kernels.fused_attention", lambda q, k, v: 1.1 * q + k + v)
        assert not kernels_work()
        monkeypatch.setattr("fpjax.models.kernels.fused_attention", lambda q, k, v: 1 / 0)
        assert not kernels_work()
