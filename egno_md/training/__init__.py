"""From runs to a model that has been judged; needs lightning."""

from .data import Data, System, load_data, read_manifest
from .loop import fit
from .train import choose_prior, train, train_files

__all__ = ["Data", "System", "choose_prior", "fit", "load_data", "read_manifest", "train", "train_files"]
