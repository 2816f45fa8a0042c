"""Frozen samples, stored posteriors and half precision hold the same latents, to sampling and rounding, and train alike."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from denoisers import variant
from safetensors.torch import load_file
from small_stages import ENCODE, ROWS, TRAIN, Stages, lay_out_compressed

from sfd_core.data.store.shards import ShardReader
from sfd_core.evaluation.measurement import semantic_latents
from sfd_core.experiment.params import EncodeParams, VariantParams
from sfd_core.host.errors import DataError, IdentityError, NumericsError
from sfd_core.host.processes import ALONE, Processes
from sfd_core.host.seeding import sample_noise
from sfd_core.latents.composite import ChannelStatistics, Composite, load_statistics
from sfd_core.latents.compressors import SemanticCompressors
from sfd_core.latents.encoder import LatentEncoder, pixel_energy, require_resolved
from sfd_core.latents.identity import read_latent_identity
from sfd_core.latents.stored import StoredLatent
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.models.vaes.posterior import Posterior
from sfd_core.sampling.artifact import load_denoiser
from sfd_core.sampling.importing import LatentSource
from sfd_core.stages.encode import EncodeInputs, Sources, encode
from sfd_core.stages.train import TrainInputs, train_variant
from sfd_core.training.history import read_history
from sfd_core.training.tasks.denoising import FlowTask, LatentBatches

CPU = torch.device("cpu")
WHOLE = slice(0, TRAIN.optimisation.batch_size)
STEPS = 6
KINDS, DTYPES = ("sample", "moments"), ("float32", "float16")
HALF_STEP = 2.0**-11
"""Largest relative rounding error of float16."""


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return lay_out_compressed(tmp_path_factory.mktemp("stages"))


pytestmark = pytest.mark.usefixtures("in_an_empty_project")


def params(posterior: str, dtype: str = "float32") -> EncodeParams:
    return EncodeParams.model_validate({**ENCODE.model_dump(), "posterior": posterior, "dtype": dtype})


def opened(stages: Stages, posterior: str, dtype: str = "float32") -> TrainInputs:
    return TrainInputs.open(variant(), stages.encode(params(posterior, dtype)))


def encoder_of(stages: Stages, encode: EncodeParams) -> LatentEncoder:
    vae, _ = load_texture_vae(stages.path / "run-True" / "texture_vae")
    compressors, _ = SemanticCompressors.load(stages.path / "run-True" / "semantic_vae")
    return LatentEncoder(encode, vae, compressors, CPU)


def every_row(part: str = "train") -> tuple[list[int], torch.Tensor]:
    """Rows and sides such that each image comes with its mirror image."""
    rows = [row for row in range(ROWS[part]) for _ in range(2)]
    return rows, torch.tensor([False, True] * ROWS[part])


def test_only_the_first_process_reads_all_inputs_to_check_them(stages: Stages, tmp_path: Path) -> None:
    shutil.copytree(stages.features(True), tmp_path / "features")
    file = next((tmp_path / "features" / "train").glob("*/tokens-*.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    run = stages.path / "run-True"
    inputs = EncodeInputs(stages.prepare, tmp_path / "features", run / "texture_vae", run / "semantic_vae")
    with pytest.raises(DataError, match="was changed or damaged"):
        Sources.open(ENCODE, inputs, Processes(0, 2))
    Sources.open(ENCODE, inputs, Processes(1, 2))


def test_networks_of_the_same_weights_and_other_heads_are_other_work(stages: Stages, tmp_path: Path) -> None:
    run = stages.path / "run-True"
    vae = shutil.copytree(run / "semantic_vae", tmp_path / "semantic_vae")
    keys = []
    for heads in (1, 2):
        config = json.loads((vae / "model.json").read_text())
        config["shape"]["heads"] = heads
        (vae / "model.json").write_text(json.dumps(config))
        sources = Sources.open(ENCODE, EncodeInputs(stages.prepare, stages.features(True), run / "texture_vae", vae), ALONE)
        keys.append(sources.resume_key(ENCODE, ALONE))
    assert keys[0] != keys[1]


def test_a_frozen_sample_is_mean_plus_deviation_times_the_noise_of_its_row(stages: Stages) -> None:
    encoder = encoder_of(stages, params("sample"))
    shard, images = (ShardReader(path / "train") for path in (stages.encode().encode, stages.prepare))
    row = 7
    pixels = torch.from_numpy(images["image"][row]) / 127.5 - 1
    texture = encoder.vae.encode(torch.stack([pixels, pixels.flip(-1)]))
    tokens = encoder.compressors.standardised(stages.tokens(True).pairs([row])[0].float())
    semantic = encoder.compressors.vae.encode(tokens)
    for name, purpose, posterior in (("z_tex", "texture", texture), ("z_sem", "semantic", semantic)):
        noise = sample_noise(0, [row], tuple(posterior.mean.shape), f"train {purpose}")[0]
        expected = posterior.mean + (posterior.log_variance / 2).exp() * noise
        np.testing.assert_allclose(shard[name][row], expected.numpy(), rtol=1e-4, atol=1e-5)
    pca = encoder.compressors.pca.encode(tokens)
    np.testing.assert_allclose(shard["z_pca"][row], pca.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ROWS)
@pytest.mark.parametrize("name", ["z_tex", "z_sem", "z_pca"])
def test_the_sample_that_would_be_frozen_is_drawn_of_the_moments_bit_for_bit(stages: Stages, name: str, part: str) -> None:
    rows, sides = every_row(part)
    frozen, moments, half = (
        StoredLatent(ShardReader(stages.encode(params(*kind)).encode / part), name)
        for kind in (("sample", "float32"), ("moments", "float32"), ("moments", "float16"))
    )
    expected = frozen.frozen(rows, sides)
    assert torch.equal(moments.frozen(rows, sides), expected)
    torch.testing.assert_close(half.frozen(rows, sides), expected, rtol=4 * HALF_STEP, atol=4 * HALF_STEP)
    if name != "z_pca":
        assert not torch.equal(moments.draw(rows, sides, lambda shape: torch.ones(len(rows), *shape)), expected)


def test_half_precision_gives_the_same_statistics(stages: Stages) -> None:
    for posterior in ("sample", "moments"):
        full, half = (load_statistics(stages.encode(params(posterior, d)).encode / "statistics.safetensors") for d in DTYPES)
        for name in ("texture", "vae", "pca"):
            # rounding errs by 2^-11 of a value at most, either way: far less of the mean of hundreds of them
            torch.testing.assert_close(half[name].mean, full[name].mean, rtol=0, atol=2e-4 * float(full[name].std.max()))
            torch.testing.assert_close(half[name].std, full[name].std, rtol=2e-4, atol=0)


@pytest.mark.parametrize("name", ["texture", "vae"])
def test_statistics_of_moments_are_those_of_samples_to_the_error_of_sampling(stages: Stages, name: str) -> None:
    """Five standard errors; drawing again and again comes closer, as 1 over the square root of the number of draws."""
    sample, moments = (load_statistics(stages.encode(params(kind)).encode / "statistics.safetensors") for kind in KINDS)
    count = 2 * ROWS["train"] * 4 * 4
    error = 5 * moments[name].std / count**0.5
    assert ((sample[name].mean - moments[name].mean).abs() < error).all()
    assert ((sample[name].std - moments[name].std).abs() < error).all()
    latent = StoredLatent(
        ShardReader(stages.encode(params("moments")).encode / "train"), {"texture": "z_tex", "vae": "z_sem"}[name]
    )
    rows, sides = every_row()
    draws, source = 200, torch.Generator().manual_seed(0)
    values = (
        torch.cat(
            [latent.draw(rows, sides, lambda shape: torch.randn(len(rows), *shape, generator=source)) for _ in range(draws)]
        )
        .transpose(0, 1)
        .flatten(1)
    )
    assert ((values.mean(1) - moments[name].mean).abs() < error / draws**0.5).all()
    assert ((values.std(1) - moments[name].std).abs() < error / draws**0.5).all()
    means = latent.central(rows, sides).transpose(0, 1).flatten(1)
    assert (means.std(1) < 0.99 * moments[name].std).all(), "the posterior's own deviation has to count"


def curve(stages: Stages, posterior: str, dtype: str, out: Path) -> np.ndarray:
    """Train a composite variant and return its losses."""
    optimisation = TRAIN.optimisation.model_copy(update={"steps": STEPS, "checkpoint_every": STEPS})
    train = TRAIN.model_copy(update={"optimisation": optimisation})
    train_variant("v", variant(), train, opened(stages, posterior, dtype), out)
    return np.array([row["loss"] for row in read_history(out / "history.csv")])


def test_half_precision_latents_train_alike(stages: Stages, tmp_path: Path) -> None:
    for posterior in KINDS:
        full, half = (curve(stages, posterior, dtype, tmp_path / posterior / dtype) for dtype in DTYPES)
        assert len(full) == STEPS
        assert not np.array_equal(full, half)
        np.testing.assert_allclose(half, full, rtol=2e-4)


def test_a_training_on_drawn_latents_that_was_broken_off_ends_in_the_same_weights(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = opened(stages, "moments", "float16")
    train_variant("v", variant(), TRAIN, inputs, tmp_path / "unbroken")
    honest = FlowTask.batch

    def broken(task: FlowTask, step: int, part: slice) -> object:
        if step == 2:
            raise KeyboardInterrupt
        return honest(task, step, part)

    monkeypatch.setattr(FlowTask, "batch", broken)
    with pytest.raises(KeyboardInterrupt):
        train_variant("v", variant(), TRAIN, inputs, tmp_path / "again")
    monkeypatch.setattr(FlowTask, "batch", honest)
    train_variant("v", variant(), TRAIN, opened(stages, "moments", "float16"), tmp_path / "again")
    weights = [load_file(tmp_path / name / "snapshots" / "step-00000003.safetensors") for name in ("unbroken", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_batch_draws_by_seed_step_and_place_alone(stages: Stages) -> None:
    inputs = opened(stages, "moments")
    composite = Composite(inputs.statistics)

    def batches(kind: VariantParams) -> LatentBatches:
        return LatentBatches(inputs.latents, composite, kind, TRAIN, null=2)

    def latents(drawn: LatentBatches, step: int) -> torch.Tensor:
        return drawn.batch(step, WHOLE)["x1"]

    one = batches(variant())
    fourth, rows, mirrored = latents(one, 4), one.order.rows(4), one.mirrored(4)
    in_turn = [latents(batches(variant()), step) for step in range(5)]
    assert torch.equal(in_turn[4], fourth)
    assert not torch.equal(latents(batches(variant(seed=1)), 4), fourth)
    seen: dict[tuple[int, bool], torch.Tensor] = {}
    for step, batch in enumerate(in_turn):
        for row, side, latent in zip(one.order.rows(step).tolist(), one.mirrored(step).tolist(), batch, strict=True):
            assert not torch.equal(seen.setdefault((row, side), torch.zeros(())), latent), "every epoch draws anew"
            seen[row, side] = latent
    mean = inputs.statistics.texture.normalise(StoredLatent(inputs.latents, "z_tex").central(rows.numpy(), mirrored))
    expected = torch.randn(mean.shape, generator=one.generator("texture posterior", 4))
    drawn = (fourth[:, : composite.n_texture] - mean) * inputs.statistics.texture.std[:, None, None]
    assert torch.corrcoef(torch.stack([drawn.flatten(), expected.flatten()]))[0, 1] > 0.9
    mean = inputs.statistics.semantic.normalise(StoredLatent(inputs.latents, "z_sem").central(rows.numpy(), mirrored))  # type: ignore[union-attr]
    drawn = fourth[:, composite.n_texture :] - mean
    expected = torch.randn(mean.shape, generator=one.generator("semantic posterior", 4))
    assert torch.corrcoef(torch.stack([drawn.flatten(), expected.flatten()]))[0, 1] > 0.9
    shares = [one.batch(4, slice(first, first + 2)) for first in range(0, TRAIN.optimisation.batch_size, 2)]
    for name, values in one.batch(4, WHOLE).items():
        assert torch.equal(torch.cat([share[name] for share in shares]), values), "whoever takes a position draws the same"


def test_real_semantics_of_an_oracle_are_the_frozen_ones_either_way(stages: Stages, tmp_path: Path) -> None:
    train_variant("v", variant(), TRAIN, opened(stages, "moments"), tmp_path / "out")
    denoiser = load_denoiser(tmp_path / "out")
    rows = np.array([3, 0, 3])
    drawn, frozen = (
        semantic_latents(denoiser, ShardReader(stages.encode(params(kind)).encode / "train"), rows)
        for kind in ("moments", "sample")
    )
    assert drawn is not None
    assert torch.equal(drawn, frozen)  # type: ignore[arg-type]
    assert torch.equal(drawn[0], drawn[2])
    stored = StoredLatent(ShardReader(stages.encode(params("sample")).encode / "train"), "z_sem")
    raw = stored.frozen(rows, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(drawn, denoiser.composite.statistics.semantic.normalise(raw))  # type: ignore[union-attr]


def test_how_the_posterior_is_stored_belongs_to_the_identity(stages: Stages) -> None:
    sample, moments = (read_latent_identity(stages.encode(params(kind)).encode) for kind in ("sample", "moments"))
    assert (sample.posterior, moments.posterior) == ("sample", "moments")
    with pytest.raises(IdentityError, match="posterior sample against moments"):
        sample.require(moments, "a test")
    source = LatentSource.of_encode(stages.encode(params("moments")).encode)
    assert (source.grid, source.identity) == (4, moments)


@pytest.mark.parametrize("posterior", KINDS)
def test_values_beyond_float16_are_an_error_that_names_field_and_rows(stages: Stages, posterior: str) -> None:
    encoder = encoder_of(stages, params(posterior, "float16"))
    with torch.no_grad():
        encoder.vae.encoder.linear.weight[2] = 1e4  # type: ignore[union-attr, index]
    images = np.full((4, 3, 32, 32), 127, np.uint8)
    images[2] = 255
    tokens = torch.zeros(4, 2, 64, 4, 4)
    field = "z_tex_mean" if posterior == "moments" else "z_tex"
    with pytest.raises(
        NumericsError, match=rf"^{field} of train images 12 reaches 1\.9\de\+06, .* the largest float16 is 65504; set encode"
    ):
        encoder.encode(images, tokens, "train", range(10, 14))
    LatentEncoder(params(posterior), encoder.vae, encoder.compressors, CPU).encode(images, tokens, "train", range(10, 14))


def test_latents_that_are_not_finite_are_an_error_at_any_precision(stages: Stages) -> None:
    encoder = encoder_of(stages, params("moments"))
    tokens = torch.zeros(3, 2, 64, 4, 4)
    tokens[1, 1, 5] = float("nan")
    with pytest.raises(NumericsError, match=r"^z_sem_mean of held_out images 1 holds NaN or infinity; check the weights"):
        encoder.encode(np.zeros((3, 3, 32, 32), np.uint8), tokens, "held_out", range(3))


def test_every_deviation_of_a_posterior_fits_into_float16() -> None:
    extremes = Posterior.from_moments(torch.tensor([[0.0, -1e9], [0.0, 1e9]])).std
    half = extremes.half()
    assert bool((half > 0).all())
    assert bool(torch.isfinite(half).all())
    assert float((half.float() - extremes)[0].abs()) < 2.0**-25


def test_channels_that_vary_less_than_float16_can_tell_are_refused() -> None:
    ordinary = ChannelStatistics(torch.tensor([0.0, -10.0, 0.0]), torch.tensor([1.0, 1.0, 0.1]))
    narrow = ChannelStatistics(torch.tensor([0.0, 100.0, 0.0]), torch.tensor([1.0, 0.5, 1e-6]))
    require_resolved({"texture": ordinary, "vae": ordinary}, params("moments", "float16"))
    require_resolved({"texture": narrow}, params("moments", "float32"))
    with pytest.raises(
        NumericsError, match=r"vae latents: channels \[1, 2\] .* 100 \+- 0\.5, in steps of 0\.0625\); set encode"
    ):
        require_resolved({"texture": ordinary, "vae": narrow}, params("moments", "float16"))


def test_channels_that_float16_cannot_tell_are_refused_before_all_images_are_encoded(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stages.path / "run-True"
    vae, _ = load_texture_vae(run / "texture_vae")
    vae.encoder.out.bias.data[2] += 3000.0  # type: ignore[union-attr, operator]
    (tmp_path / "vae").mkdir()
    vae.save(tmp_path / "vae")
    inputs = EncodeInputs(stages.prepare, stages.features(True), tmp_path / "vae", run / "semantic_vae")
    encode(params("sample"), inputs, tmp_path / "wide")
    monkeypatch.setattr("sfd_core.stages.encode.run_all", lambda *_: pytest.fail("images were encoded"))
    with pytest.raises(NumericsError, match=r"^texture latents: channels \[2\] vary too little .* set encode.dtype to float32"):
        encode(params("sample", "float16"), inputs, tmp_path / "narrow")


def test_the_energy_of_a_channel_is_what_its_variation_adds_to_the_pixels() -> None:
    spread, gain = torch.tensor([1.0, 3.0, 0.5]), torch.tensor([2.0, 1.0, 4.0])
    z = torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * spread[:, None, None] + 5
    statistics = ChannelStatistics(z.mean((0, 2, 3)), z.std((0, 2, 3)))
    vae = SimpleNamespace(decode=lambda latents: gain[:, None, None] * latents)
    energy = gain.square() * z.var((0, 2, 3))
    torch.testing.assert_close(pixel_energy(vae, z, statistics), energy / energy.sum())  # type: ignore[arg-type]
