"""Published VAEs against an independent network of latent diffusion's own structure and names."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from latent_diffusion import LatentDiffusionVAE, f8, f16
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_core.experiment.params import DiffusersVAEParams, LDMVAEParams
from sfd_core.host.errors import DataError, ResourceError
from sfd_core.host.paths import file_digest
from sfd_core.models.public import image_vae as published_vae
from sfd_core.models.public import ldm
from sfd_core.models.public.image_vae import read_published_vae
from sfd_core.models.vaes import image_vae
from sfd_core.models.vaes.autoencoder_kl import AutoencoderKLVAE, build_network
from sfd_core.models.vaes.image_vae import ImageVAE
from sfd_core.models.vaes.loader import load_texture_vae

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def ldm_params(path: Path, channels: int = 4, downsampling: int = 16) -> LDMVAEParams:
    return LDMVAEParams(kind="ldm", name="test-vae", weights=str(path), channels=channels, downsampling=downsampling)


def diffusers_params(path: str | Path, subfolder: str | None = None) -> DiffusersVAEParams:
    return DiffusersVAEParams(
        kind="diffusers", name="test-vae", weights=str(path), subfolder=subfolder, channels=4, downsampling=16
    )


def checkpoint(path: Path, state: Mapping[str, Tensor]) -> Path:
    torch.save({"state_dict": dict(state), "epoch": 49}, path)
    return path


def require_same(vae: ImageVAE, source: LatentDiffusionVAE) -> None:
    """In float64, where two ways to compute one network differ by nothing that matters."""
    exact, images = copy.deepcopy(source).double(), IMAGES.double()
    mean, log_variance = exact.moments(images).chunk(2, dim=1)
    posterior = vae.double().encode(images)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posterior.log_variance, log_variance.clamp(-30, 20), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(vae.decode(mean), exact.decode(mean), rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def source() -> LatentDiffusionVAE:
    torch.manual_seed(0)
    return f16()


ONLY_TRAINING = ("loss.discriminator.main.0", "linear_proj", "foundation_model.model.norm", "model_ema.decoder")


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("", []),
        *((prefix, [f"{prefix}{name}" for name in ONLY_TRAINING]) for prefix in ("", "module.", "first_stage_model.")),
        ("first_stage_model.", ["model.diffusion_model.out.2", "betas"]),
    ],
    ids=["bare", "trained", "trained in parallel", "inside", "inside a larger model"],
)
def test_a_checkpoint_of_latent_diffusion_is_the_same_network_whatever_is_beside_it(
    tmp_path: Path, source: LatentDiffusionVAE, prefix: str, others: list[str]
) -> None:
    state = {prefix + name: value for name, value in source.state_dict().items()}
    path = checkpoint(tmp_path / "vae.ckpt", state | {f"{name}.weight": torch.zeros(2, 2) for name in others})
    vae = read_published_vae(ldm_params(path))
    assert (vae.shape.channels, vae.shape.downsampling) == (4, 16)
    require_same(vae, source)


def test_a_level_without_attention_and_another_downsampling(tmp_path: Path) -> None:
    torch.manual_seed(0)
    eighth = f8()
    require_same(read_published_vae(ldm_params(checkpoint(tmp_path / "vae.ckpt", eighth.state_dict()), 4, 8)), eighth)


def test_safetensors_in_half_precision_become_float32(tmp_path: Path, source: LatentDiffusionVAE) -> None:
    save_file({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "vae.safetensors")
    vae = read_published_vae(ldm_params(tmp_path / "vae.safetensors"))
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    torch.testing.assert_close(vae.encode(IMAGES).mean, source.moments(IMAGES)[:, :4], rtol=0.05, atol=0.02)


def test_a_vae_without_quantisation_layers(tmp_path: Path, source: LatentDiffusionVAE) -> None:
    state = {name: value for name, value in source.state_dict().items() if "quant_conv" not in name}
    vae = read_published_vae(ldm_params(checkpoint(tmp_path / "vae.ckpt", state)))
    torch.testing.assert_close(vae.encode(IMAGES).mean, source.encoder(IMAGES)[:, :4], rtol=1e-4, atol=1e-5)


def test_it_comes_back_from_its_folder(tmp_path: Path, source: LatentDiffusionVAE) -> None:
    path = checkpoint(tmp_path / "vae.ckpt", source.state_dict())
    read_published_vae(ldm_params(path)).save(tmp_path)
    vae, identity = load_texture_vae(tmp_path)
    assert isinstance(vae, AutoencoderKLVAE)
    assert dict(identity) == {
        "name": "test-vae",
        "source": file_digest(path),
        "weights": file_digest(tmp_path / "model.safetensors"),
    }
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    require_same(vae, source)


def test_large_batches_go_through_in_parts(tmp_path: Path, source: LatentDiffusionVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = read_published_vae(ldm_params(checkpoint(tmp_path / "vae.ckpt", source.state_dict())))
    seen: list[tuple[str, int]] = []
    for name in ("encoder", "decoder"):
        part = getattr(vae.network, name)
        part.register_forward_pre_hook(lambda _, inputs, name=name: seen.append((name, len(inputs[0]))))
    monkeypatch.setattr(image_vae, "PIXELS_AT_ONCE", 2 * 32**2)
    require_same(vae, source)
    assert seen == [("encoder", 2), ("encoder", 1), ("decoder", 2), ("decoder", 1)]


def test_the_published_networks_have_the_published_sizes() -> None:
    """The parameters of LDM's own f16d32 and f8d4, which the hand-written network counts without diffusers."""
    with torch.device("meta"):
        expected = {
            "f16d32": LatentDiffusionVAE(128, (1, 1, 2, 2, 4), (False, False, False, False, True), 32),
            "f8d4": LatentDiffusionVAE(128, (1, 2, 4, 4), (False,) * 4, 4),
        }
    counts = {}
    for name, vae in expected.items():
        state = vae.state_dict()
        network = build_network(ldm.configuration(state))
        assert {key: value.shape for key, value in ldm.to_diffusers(state).items()} == {
            key: value.shape for key, value in network.state_dict().items()
        }
        counts[name] = sum(value.numel() for value in network.state_dict().values())
    assert counts["f8d4"] == 83_653_863  # Stable Diffusion's


def test_missing_and_unexpected_weights_are_listed(tmp_path: Path, source: LatentDiffusionVAE) -> None:
    state = source.state_dict()
    del state["decoder.up.0.block.2.conv2.weight"], state["encoder.mid.attn_1.q.bias"]
    state["decoder.up.0.block.2.conv3.weight"] = torch.zeros(1)
    with pytest.raises(DataError) as caught:
        read_published_vae(ldm_params(checkpoint(tmp_path / "vae.ckpt", state)))
    for told in (
        "missing: encoder.mid_block.attentions.0.to_q.bias, decoder.up_blocks.4.resnets.2.conv2.weight",
        "unexpected: decoder.up_blocks.4.resnets.2.conv3.weight",
        "vae.ckpt",
    ):
        assert told in str(caught.value)


def test_weights_that_no_vae_has_are_named(tmp_path: Path, source: LatentDiffusionVAE) -> None:
    path = checkpoint(tmp_path / "vae.ckpt", source.state_dict() | {"quantize.embedding.weight": torch.zeros(9, 4)})
    with pytest.raises(DataError, match=r"no latent-diffusion VAE has: quantize\.embedding\.weight"):
        read_published_vae(ldm_params(path))


def test_another_family_is_told_by_its_sizes(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "kl-f8.ckpt", f8().state_dict())
    with pytest.raises(DataError, match=r"kl-f8\.ckpt holds .* \(f8d4\), but texture_vae says .* \(f16d32\)"):
        read_published_vae(ldm_params(path, channels=32, downsampling=16))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"blocks.0.attn.qkv.weight": torch.zeros(2)}, r"encoder\.conv_in\.weight is missing; found blocks"),
        ({"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3)}, r"'encoder\.down\.0\.block\.0\.conv1\.weight' is missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, state: dict[str, Tensor], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_published_vae(ldm_params(checkpoint(tmp_path / "vae.ckpt", state)))


def test_an_encoder_without_log_variance_is_no_kl_vae(tmp_path: Path, source: LatentDiffusionVAE) -> None:
    state = source.state_dict()
    state["encoder.conv_out.weight"] = state["encoder.conv_out.weight"][:4]
    with pytest.raises(DataError, match="4 output channels and the decoder 4 input channels"):
        read_published_vae(ldm_params(checkpoint(tmp_path / "vq.ckpt", state)))


def diffusers_folder(folder: Path, source: LatentDiffusionVAE) -> Path:
    """Write the folder that diffusers' own `save_pretrained` writes."""
    state = source.state_dict()
    network = build_network(ldm.configuration(state))
    network.load_state_dict(ldm.to_diffusers(state), assign=True)
    network.save_pretrained(folder)
    return folder


def test_a_folder_of_diffusers(tmp_path: Path, source: LatentDiffusionVAE) -> None:
    folder = diffusers_folder(tmp_path / "model" / "vae", source)
    require_same(read_published_vae(diffusers_params(folder)), source)
    require_same(read_published_vae(diffusers_params(tmp_path / "model", "vae")), source)
    require_same(read_published_vae(diffusers_params(folder / "diffusion_pytorch_model.safetensors")), source)


def test_former_names_of_attention(tmp_path: Path, source: LatentDiffusionVAE) -> None:
    folder = diffusers_folder(tmp_path / "vae", source)
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    for new, old in former.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    assert any(".query." in name for name in state)
    require_same(read_published_vae(diffusers_params(folder)), source)


def test_a_repository_of_the_hub(tmp_path: Path, source: LatentDiffusionVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = diffusers_folder(tmp_path / "cache", source)
    asked: list[tuple[str, str, str | None]] = []

    def download(repo: str, name: str, subfolder: str | None = None) -> str:
        asked.append((repo, name, subfolder))
        return str(folder / name)

    monkeypatch.setattr(published_vae, "hf_hub_download", download)
    require_same(read_published_vae(diffusers_params("owner/model", "vae")), source)
    assert asked == [("owner/model", name, "vae") for name in ("config.json", "diffusion_pytorch_model.safetensors")]


def test_without_a_network_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    assert published_vae.hf_hub_download is huggingface_hub.hf_hub_download
    monkeypatch.setattr(published_vae, "hf_hub_download", offline)
    with pytest.raises(
        ResourceError, match=r"owner/model is no local folder .* \(no connection\); .* download config\.json and diffusion_"
    ):
        read_published_vae(diffusers_params("owner/model"))


def test_a_deleted_folder_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    with pytest.raises(DataError, match="weights/vae does not exist"):
        read_published_vae(diffusers_params("weights/vae"))


def test_formats_are_not_mixed_up(tmp_path: Path, source: LatentDiffusionVAE) -> None:
    folder = diffusers_folder(tmp_path / "vae", source)
    with pytest.raises(DataError, match=r"set texture_vae\.kind to diffusers"):
        read_published_vae(ldm_params(folder / "diffusion_pytorch_model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(DataError, match="describes a VQModel"):
        read_published_vae(diffusers_params(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json is no VAE configuration"):
        read_published_vae(diffusers_params(folder))
    with pytest.raises(DataError, match="does not exist"):
        read_published_vae(diffusers_params(tmp_path / "nothing" / "here" / "at-all"))
