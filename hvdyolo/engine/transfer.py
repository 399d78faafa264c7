"""Starting from the weights of another model: what fits is taken, and some of it may be held fixed."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hvdyolo.models.build import DetectionModel
from hvdyolo.models.published_weights import read_weights
from hvdyolo.models.selection import select_parameters, split_choices
from hvdyolo.utils.errors import UsageError


@dataclass(frozen=True)
class Transfer:
    """What was taken from a weights file.

    Attributes:
        taken: number of tensors taken.
        total: number of tensors of the model.
        left: names of those that stay as they were, and why.
    """

    taken: int
    total: int
    left: dict[str, str]

    @property
    def keeps_anchors(self) -> bool:
        """Whether the model's own anchors stay."""
        return any(name.endswith(".anchors") for name in self.left)


def transfer_weights(path: Path, model: DetectionModel) -> Transfer:
    """Copy into ``model`` the tensors of ``path`` whose names and shapes agree.

    Anchors belong to the head that learned with them: where nothing else of the head fits, the model keeps
    its own.

    Raises:
        UsageError: no parameter agrees, or one that the model holds fixed is not there.
        DataError: the file is damaged or of no use.
    """
    source, target = read_weights(path).state_dict(), model.state_dict()
    left = {
        name: "not there" if name not in source else f"{_shape(source[name])} there, {_shape(value)} here"
        for name, value in target.items()
        if name not in source or source[name].shape != value.shape
    }
    head = f"model.{len(model.model) - 1}."
    anchors = f"{head}anchors"
    learned = [name for name in target if name.startswith(head) and name != anchors]
    has_head = any(name not in left for name in learned)
    if anchors not in left and not has_head and not source[anchors].equal(target[anchors].cpu()):
        left[anchors] = "other anchors, of a head that does not fit"
    if all(name in left for name, _ in model.named_parameters()):
        raise UsageError(f"No tensor of {path} fits this model; choose weights of a like model.")
    for name, parameter in model.named_parameters():
        if name in left and not parameter.requires_grad:
            raise UsageError(
                f"model.freeze would hold {name} at random values, for {path} has nothing that fits it "
                f"({left[name]}); freeze less, or choose other weights."
            )
    model.load_state_dict({name: source[name] for name in target if name not in left}, strict=False)
    return Transfer(len(target) - len(left), len(target), left)


def freeze(model: DetectionModel, choices: str) -> None:
    """Hold the parameters that ``choices`` select fixed; norms among them keep their statistics too.

    It has to be done before gradients are reduced over ranks: what has no gradient must take no part.

    Raises:
        UsageError: a choice selects nothing, or nothing is left to learn.
    """
    names = {name for choice in split_choices(choices) for name in select_parameters(model, choice)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"'{choices}' leaves nothing to learn; freeze less.")


def read_lr_factors(model: DetectionModel, setting: str) -> dict[str, float]:
    """Factors of the learning rate by name of parameter; those not named have the factor 1.

    Args:
        model: whose parameters.
        setting: ``choice=factor`` words that commas separate; of several for a parameter the last one counts.

    Raises:
        UsageError: a choice selects nothing, or a factor is no number above 0.
    """
    factors: dict[str, float] = {}
    for word in split_choices(setting):
        choice, _, number = word.partition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = 0.0
        if not 0 < factor < float("inf"):
            raise UsageError(
                f"'{word}' is no choice=factor with a factor above 0, such as backbone=0.1; to learn nothing "
                "in some layers use model.freeze."
            )
        factors.update(dict.fromkeys(select_parameters(model, choice.strip()), factor))
    return factors


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
