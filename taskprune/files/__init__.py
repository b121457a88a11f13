"""Writing files so that nobody ever finds half of one."""

from taskprune.files.atomic import replacing
from taskprune.files.places import make_folder, make_folder_of

__all__ = ["make_folder", "make_folder_of", "replacing"]
