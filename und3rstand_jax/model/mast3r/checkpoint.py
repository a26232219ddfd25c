"""What MASt3R's checkpoints look like: DUSt3R's, with heads of two parts."""

from typing import Any

from und3rstand_jax.model.checkpoint_form import Shapes
from und3rstand_jax.model.dust3r.checkpoint import DUSt3RForm
from und3rstand_jax.model.mast3r.config import OPTION_OF, MASt3RConfig
from und3rstand_jax.model.mast3r.names import head_fields, mast3r_names
from und3rstand_jax.model.tensor_names import NamedStack


class MASt3RForm(DUSt3RForm):
    """The checkpoints of MASt3R."""

    known_as = ("MASt3R",)
    options = frozenset({"desc_mode", "desc_conf_mode", "two_confs"})
    title = "MASt3R"
    config = MASt3RConfig
    option_of = DUSt3RForm.option_of | OPTION_OF
    unseen = (*DUSt3RForm.unseen, "two_confs", "desc_conf_mode")

    def names(self, config: Any, second_decoder: str) -> tuple[NamedStack, ...]:
        """See `DUSt3RForm.names`."""
        return mast3r_names(config, second_decoder)

    def head_fields(self, tensors: Shapes) -> dict[str, Any] | None:
        """See `DUSt3RForm.head_fields`."""
        return head_fields(tensors)

    def fields_of_unknown_head(self) -> None:
        """A trunk without heads is a DUSt3R's."""
