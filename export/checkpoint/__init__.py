"""Reading checkpoints: folders, weight files and configs, none of which are trusted."""

from .folder import Checkpoint, locate

__all__ = ["Checkpoint", "locate"]
