"""What compiling needs is asked for before anything is computed."""

import shutil

import pytest
from torch import nn

from sfd_core.host.errors import ConfigError
from sfd_core.models.denoisers.blocks import compile_blocks


def test_without_a_compiler_blocks_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"engine\.compile is true, which needs"):
        compile_blocks(nn.Identity())
