"""Lightning's FSDP2 strategy over all ranks, however many nodes there are."""

from lightning.pytorch.strategies import ModelParallelStrategy


class FSDP2(ModelParallelStrategy):
    """Weights are spread over all ranks of the job; the stage says in `configure_model` what is gathered together.

    Lightning's own strategy wants the number of ranks in the config, where `trainer.num_nodes` says it already.

    Args:
        save_distributed_checkpoint: every rank writes its shard; else the first one writes everything, if it has the memory.
        process_group_backend: nccl on GPUs and gloo elsewhere, where not said.
    """

    def __init__(self, save_distributed_checkpoint: bool = True, process_group_backend: str | None = None) -> None:
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        """The trainer has said by now how many nodes and devices there are."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
