"""Models by name: ``--model record[:argument]``, ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``.

Each source of models has a file; `inputs` tells how images become the input of a model, and the names of
its classes.
"""

from captum_learnprop.models.efficientnet_lite import efficientnet_lite
from captum_learnprop.models.hugging_face import hugging_face_model
from captum_learnprop.models.inputs import class_names_of, imagenet_names, names_in, preprocessing_of
from captum_learnprop.models.loading import files_of, load_model
from captum_learnprop.models.own_file import model_of_file, model_of_module
from captum_learnprop.models.shipped import digits_cnn, reference_net
from captum_learnprop.models.text import OnEmbeddings
from captum_learnprop.models.timm_models import timm_model
from captum_learnprop.models.torchvision_models import torchvision_model
from captum_learnprop.models.transforms import transform_named

__all__ = [
    "OnEmbeddings", "class_names_of", "digits_cnn", "efficientnet_lite", "files_of", "hugging_face_model",
    "imagenet_names", "load_model", "model_of_file", "model_of_module", "names_in", "preprocessing_of", "reference_net",
    "timm_model", "torchvision_model", "transform_named",
]  # fmt: skip
