"""Train on two processes with a token budget, whole and resumed, and write whether the weights are equal."""

import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parent))

from packed_batches import make_budget_trainer, make_rows


def main(base: str, folder: Path):
    rows, options = make_rows(9, critiques=(1, 3)), {"shared_prompt": True, "token_budget": 700, "ddp_backend": "gloo"}
    whole = make_budget_trainer(base, folder / "whole", rows, **options)
    seen = [len(batch["reward_positions"]) // 2 for batch in whole.get_train_dataloader()]
    everywhere = torch.tensor(seen)
    torch.distributed.all_reduce(everywhere)  # fails unless all processes have equally many batches
    assert (
        everywhere.tolist() == [2 * pairs for pairs in seen] and 0 <= sum(everywhere) - len(whole.train_dataset) <= 1
    )
    whole.train()
    steps = whole.state.max_steps
    resumed = make_budget_trainer(base, folder / "resumed", rows, **options)
    resumed.train(resume_from_checkpoint=str(folder / f"whole/checkpoint-{steps // 3 + 2}"))
    equal = all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    if whole.is_world_process_zero():
        (folder / "compared").write_text("equal" if equal else "different")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
