"""Score texts, and let the reward model pick the best of n samples of a policy.

    python examples/best_of_n.py REWARD_MODEL POLICY "A question?" [N]

Needs nothing but transformers: the reward model brings its own code.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


def score(reward_model: str, conversations: list[list[dict[str, str]]]) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(reward_model, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(reward_model, trust_remote_code=True)
    texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in conversations]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        return model(**batch).logits[:, 0].tolist()


def sample(policy: str, prompt: list[dict[str, str]], n: int) -> list[str]:
    model = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    torch.manual_seed(0)
    outputs = model.generate(**inputs, max_new_tokens=40, do_sample=True, num_return_sequences=n)
    return tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main(reward_model: str, policy: str, question: str, n: str = "8") -> None:
    prompt = [{"role": "user", "content": question}]
    answers = sample(policy, prompt, int(n))
    rewards = score(reward_model, [[*prompt, {"role": "assistant", "content": answer}] for answer in answers])
    for reward, answer in sorted(zip(rewards, answers, strict=True), reverse=True):
        print(f"{reward:+8.3f}  {' '.join(answer.split())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
