import pytest
from emoji import emoji

from sfd_core.tracking.runs import training_run, vae_run, variant_run

PARAMS = emoji()


def test_every_parameter_that_shapes_a_variant_is_there_under_its_own_name() -> None:
    spec = variant_run(PARAMS, "sfd")
    assert spec.name == "sfd"
    assert spec.params["variant.delta_t"] == "0.3"
    assert spec.params["train.optimisation.betas"] == "[0.9, 0.95]"
    assert spec.params["prepare.source"] == "twemoji"
    assert spec.params["prepare.path"] == "null"
    assert spec.params["variant.repa.mode"] == "cosine"
    assert not any(name.startswith(("report", "variants")) for name in spec.params)


def test_variants_differ_in_their_tags_and_vaes_carry_their_own_groups() -> None:
    assert variant_run(PARAMS, "sfd").tags["sfd.params"] != variant_run(PARAMS, "sync").tags["sfd.params"]
    groups = {name.split(".")[0] for name in vae_run(PARAMS, "semantic_vae").params}
    assert groups == {"prepare", "features", "semantic_vae"}


def test_a_training_under_way_carries_its_group() -> None:
    assert training_run("sfd", PARAMS.train).params["training.snapshots"] == str(PARAMS.train.snapshots)


def test_a_run_links_to_the_flow_run_that_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sfd.flow_run" not in training_run("sfd", PARAMS.train).tags
    monkeypatch.setenv("SFD_FLOW_RUN", "http://prefect:4200/runs/flow-run/7")
    assert training_run("sfd", PARAMS.train).tags["sfd.flow_run"] == "http://prefect:4200/runs/flow-run/7"


@pytest.mark.usefixtures("no_mlflow")
def test_describing_a_run_needs_no_mlflow() -> None:
    assert variant_run(PARAMS, "dit").tags["sfd.command"] == "dvc repro evaluate@dit"
