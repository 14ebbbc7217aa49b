"""Data sets: a dataclass a kind, each of which can `read` its own; `load(seed) -> ImageData` is common to all (`data_set`);
batches made on the device (`batches`)."""

from layergraft.data.dicom import Dicom
from layergraft.data.digits import Digits
from layergraft.data.image_data import ImageData, Split
from layergraft.data.image_folder import Folder
from layergraft.data.medmnist import MedMnist
from layergraft.data.npz import Npz
from layergraft.data.textures import Textures
from layergraft.data.torchvision_sets import TorchvisionArrays, TorchvisionFiles

__all__ = ["Dicom", "Digits", "Folder", "ImageData", "MedMnist", "Npz", "Split", "Textures", "TorchvisionArrays",
           "TorchvisionFiles"]  # fmt: skip
