"""
Stage 2: rewrite all critiques in a preference dataset with the stage 1 model, so that stage 3 trains on the model's own critiques.

The output dataset keeps the input columns. chosen_feedback and rejected_feedback contain the new critiques; chosen_feedback_ids and
rejected_feedback_ids contain their token ids, and chosen_finish_reason and rejected_finish_reason their finish reasons ("length" marks a
truncated critique). Training uses the token ids, because decoded text does not always encode back to the same ids. A journal in the output
folder records the critiques as they are generated: to resume a killed run, run the same command again.

In this process, with transformers or vLLM:

python examples/build_self_critiques.py --model_name_or_path critic-sft --dataset_name pairs.jsonl \
    --output_dir self-critiques --max_new_tokens 1024 --batch_size 32

With separate servers that run the same model (on a CPU, sampling also needs --no-enable-chunked-prefill):

python -m vllm.entrypoints.openai.api_server --model critic-sft --port 8000
python examples/build_self_critiques.py --model_name_or_path critic-sft --dataset_name pairs.jsonl \
    --output_dir self-critiques --max_new_tokens 1024 --base_url http://127.0.0.1:8000/v1
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.data.builders.self_critiques")
