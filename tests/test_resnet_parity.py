"""Parity of the ResNets with transformers' at random weights. Run with: pytest -m extra tests/test_resnet_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.models.resnet import SIZES, ResNet, ResNetSettings

pytestmark = pytest.mark.extra
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)


def theirs(settings, num_heads, channels):
    """A model in evaluation mode whose weights and running statistics are all random."""
    torch.manual_seed(0)
    factor = 4 if settings.block == "bottleneck" else 1
    config = transformers.ResNetConfig(
        num_channels=channels,
        embedding_size=settings.width,
        hidden_sizes=[factor * settings.width * 2**i for i in range(len(settings.stages))],
        depths=list(settings.stages),
        layer_type=settings.block,
        num_labels=num_heads,
    )
    assert not config.downsample_in_bottleneck
    assert not config.downsample_in_first_stage
    model = transformers.ResNetForImageClassification(config).eval()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.ndim == 1:
                value.copy_(torch.randn_like(value) * 0.1 + ("bias" not in name and "mean" not in name))
            if "running_var" in name:
                value.abs_()
    return model


def variables_of(model, settings):
    """Their weights under our names."""
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    params, stats = {}, {}

    def take(path, conv, norm, source):
        p, s = params, stats
        for part in path:
            p, s = p.setdefault(part, {}), s.setdefault(part, {})
        p[conv] = {"kernel": weights.pop(f"{source}.convolution.weight").transpose(2, 3, 1, 0)}
        names = {"scale": "weight", "bias": "bias"}
        p[norm] = {ours: weights.pop(f"{source}.normalization.{name}") for ours, name in names.items()}
        s[norm] = {name: weights.pop(f"{source}.normalization.running_{name}") for name in ("mean", "var")}
        weights.pop(f"{source}.normalization.num_batches_tracked")

    take((), "conv1", "bn1", "resnet.embedder.embedder")
    for i, blocks in enumerate(settings.stages):
        for j in range(blocks):
            source = f"resnet.encoder.stages.{i}.layers.{j}"
            for k in range(3 if settings.block == "bottleneck" else 2):
                take((f"stage{i}_block{j}",), f"conv{k + 1}", f"bn{k + 1}", f"{source}.layer.{k}")
            if f"{source}.shortcut.convolution.weight" in weights:
                take((f"stage{i}_block{j}",), "downsample_conv", "downsample_bn", f"{source}.shortcut")
    params["fc"] = {"kernel": weights.pop("classifier.1.weight").T, "bias": weights.pop("classifier.1.bias")}
    assert not weights
    return {"params": params, "batch_stats": stats}


@pytest.mark.parametrize(
    ("settings", "side", "channels"),
    [
        (SIZES[18], 64, 3),
        (SIZES[34], 28, 1),
        (SIZES[50], 64, 3),
        (SIZES[101], 28, 3),
        (SIZES[152], 28, 1),
        (ResNetSettings((1, 2), width=8, block="basic"), 33, 1),
        (ResNetSettings((2, 1, 1), width=8), 45, 3),
    ],
)
def test_logits_are_those_of_pytorch(settings, side, channels):
    model = theirs(settings, 10, channels)
    variables = variables_of(model, settings)
    ours = ResNet(settings, num_heads=10)
    x = np.random.default_rng(0).uniform(-1, 1, (2, side, side, channels)).astype(np.float32)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), jnp.asarray(x))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).logits.numpy()
    apply = jax.jit(ours.apply)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(apply(variables, x), wanted, rtol=0, atol=1e-5 * scale)
    # The images matter, and so does a thousandth of the kernels.
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3 * scale
    other = jax.tree.map(lambda leaf: leaf * 1.001 if leaf.ndim == 4 else leaf, variables)
    assert np.abs(np.asarray(apply(other, x)) - wanted).max() > 5e-5 * scale
