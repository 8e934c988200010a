"""
Stage 2 on a cluster: like build_self_critiques.py, but with vLLM engines on the nodes of a Ray cluster (`ray.data.llm`).

The resulting dataset is the same: the input columns plus chosen_feedback, chosen_feedback_ids, chosen_finish_reason and so on, in
input order. The output folder's journal records critiques as they arrive: run the same command again to resume a killed run or to
retry the failed rows in rejects.jsonl. Every node needs this environment, and access to the model under the same name.

On a cluster started with `ray start` (--ray_address also accepts the address of another cluster):

python examples/build_critiques_with_ray.py --model_name_or_path critic-sft --dataset_name pairs.jsonl \
    --output_dir self-critiques --ray_address auto --num_replicas 16 --tensor_parallel_size 1

On this machine only, without a GPU:

python examples/build_critiques_with_ray.py --model_name_or_path critic-sft --dataset_name pairs.jsonl \
    --output_dir self-critiques --ray_address local --use_cpu --vllm_options '{"max_model_len": 4096}'
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.data.builders.ray")
