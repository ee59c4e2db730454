"""The configs that come with fpjax: `configs/` of a checkout, this folder in an installed wheel."""

from pathlib import Path

_INSTALLED = Path(__file__).parent
DIRECTORY = _INSTALLED if (_INSTALLED / "default.py").is_file() else _INSTALLED.parents[1] / "configs"
__path__ = [str(DIRECTORY)]
