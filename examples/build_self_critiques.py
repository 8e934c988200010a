"""
Stage 2: the model of stage 1 rewrites all critiques of a preference dataset, so that stage 3 trains on its own words.

The new dataset has the old columns, with chosen_feedback and rejected_feedback replaced, the generated token ids beside
them (chosen_feedback_ids, …: training uses these, since decoded text does not always encode back to them), and finish
reasons (chosen_finish_reason, …: "length" marks a critique that was cut). A run that was killed goes on when the same
command is given again: what was written is in the output folder's journal.

In this process, with transformers or vLLM:

python examples/build_self_critiques.py --model_name_or_path critic-sft --dataset_name pairs.jsonl \
    --output_dir self-critiques --max_new_tokens 1024 --batch_size 32

By servers that run elsewhere, of the same model (on a CPU and with a temperature they also need
--no-enable-chunked-prefill):

python -m vllm.entrypoints.openai.api_server --model critic-sft --port 8000
python examples/build_self_critiques.py --model_name_or_path critic-sft --dataset_name pairs.jsonl \
    --output_dir self-critiques --max_new_tokens 1024 --base_url http://127.0.0.1:8000/v1
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.data.builders.self_critiques")
