"""Lightning's FSDP2 strategy over all ranks, however many nodes there are, and over groups of them (HSDP)."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from speechlm.checkpoint import resume, state
from speechlm.checkpoint.form import is_checkpoint

REPLICAS, SHARDS = "replicas", "shards"  # axes of a mesh of groups


class FSDP2(ModelParallelStrategy):
    """Weights are spread over all ranks of the job; the stage says in `configure_model` what is gathered together.

    Lightning's own strategy wants the number of ranks in the config, where `trainer.num_nodes` says it already, and knows no
    replicas. With `shard_size` the ranks form groups of that size; each group holds the weights once, and gradients are
    averaged over the groups (HSDP). That takes more memory and less of a slow network: whole weights travel inside a group only.

    Args:
        save_distributed_checkpoint: every rank writes its shard; else the first one writes everything, if it has the memory.
        process_group_backend: nccl on GPUs and gloo elsewhere, where not said.
        shard_size: ranks that hold the weights together: a number, or "node" for those of one; null is all ranks.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        shard_size: int | Literal["node"] | None = None,
    ) -> None:
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )
        self.shard_size = shard_size

    def setup_environment(self) -> None:
        """The trainer has said by now how many nodes and devices there are."""
        ranks = self.num_nodes * self.num_processes
        self._data_parallel_size = ranks
        shards = self.num_processes if self.shard_size == "node" else (self.shard_size or ranks)
        if shards < 1 or ranks % shards:
            raise ValueError(f"shard_size must divide the {ranks} ranks of the job, got {shards}")
        super().setup_environment()
        if shards < ranks:
            self._device_mesh = _mesh_of_groups(self.root_device.type, ranks // shards, shards)
            assert self.lightning_module is not None
            self.lightning_module._device_mesh = self._device_mesh

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This rank's shards, where they are; Lightning's copies them to memory of the host that was never touched."""
        if not self._save_distributed_checkpoint:
            return super().lightning_module_state_dict()
        assert self.model is not None
        return get_model_state_dict(self.model, options=StateDictOptions())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The same of an optimizer, by the names of the parameters."""
        if not self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        assert self.model is not None
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return get_optimizer_state_dict(self.model, plain, options=StateDictOptions())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Any rank count's checkpoint, the newest that is whole; files and folders of Lightning's own as it reads them."""
        path = Path(self.broadcast(checkpoint_path))
        if not is_checkpoint(path):
            return super().load_checkpoint(path, weights_only)
        return resume.newest_whole(path, getattr(self.checkpoint_io, "own", None), self._load_shards)

    def _load_shards(self, path: Path) -> dict[str, Any]:
        assert self.model is not None
        module: dict[str, Any] = get_model_state_dict(self.model)
        wanted: dict[str, Any] = {f"{state.WEIGHTS}.{name}": tensor for name, tensor in module.items()}
        moments = []
        for number, optimizer in enumerate(self.optimizers):
            now: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer)
            tensors, _ = state.named(now, [group["params"] for group in now["param_groups"]])
            wanted |= {f"{state.OPTIMIZERS}.{number}.{name}": tensor for name, tensor in tensors.items()}
            moments.append(tensors)
        rest = resume.load_into(path, wanted)
        self.model.load_state_dict(module, strict=False)  # filled in place; whatever else hangs on loading comes along
        for optimizer, tensors, own in zip(self.optimizers, moments, rest.pop(state.OPTIMIZERS), strict=True):
            set_optimizer_state_dict(self.model, optimizer, state.by_name(tensors, own))
        return rest


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The axes of a strategy's mesh that weights are spread over: (ranks,), or (replicas, shards)."""
    names = mesh.mesh_dim_names or ()
    return mesh[REPLICAS, SHARDS] if REPLICAS in names else mesh["data_parallel"]


def _mesh_of_groups(device: str, replicas: int, shards: int) -> DeviceMesh:
    """(replicas, shards, 1), whose first two axes together are also known as `data_parallel`, the name Lightning asks for."""
    mesh = init_device_mesh(device, (replicas, shards, 1), mesh_dim_names=(REPLICAS, SHARDS, "tensor_parallel"))
    mesh[REPLICAS, SHARDS]._flatten("data_parallel")
    return mesh
