"""Python, LlamaIndex: OpenAIEmbedding."""

import openai
from llama_index.embeddings.openai import OpenAIEmbedding

from openai_api import MODEL, SERVICES, TEXT_IS_REFUSED, check, encoded, pictures, refusal


def embedding(url, key, **options):
    # `model_name`, because the parameter `model` accepts only OpenAI's own models. Without retries, a failure
    # shows at once.
    return OpenAIEmbedding(api_base=url + "/v1", api_key=key, model_name=MODEL, max_retries=0, **options)


for url, key in SERVICES:
    for client, is_exact in [
        (embedding(url, key), False),
        (embedding(url, key, additional_kwargs={"encoding_format": "float"}), True),
        (embedding(url, key, embed_batch_size=2), False),  # sends the three pictures in two batches
    ]:
        check(url, key, client.get_text_embedding, client.get_text_embedding_batch, is_exact)
        check(url, key, client.get_query_embedding, client.get_text_embedding_batch, is_exact)

    picture_and_text = [pictures(url)[0], "a photo of a cat"]
    error = refusal(lambda: embedding(url, key).get_text_embedding_batch(picture_and_text), openai.UnprocessableEntityError)
    assert str(error) == f"Error code: 422 - input[1] {TEXT_IS_REFUSED}", error
    # By default, LlamaIndex sends up to 100 pictures in a batch. The service accepts at most 32.
    too_many = [encoded("formats/plain.jpg")] * 33
    error = refusal(lambda: embedding(url, key).get_text_embedding_batch(too_many), openai.UnprocessableEntityError)
    assert "LlamaIndex's embed_batch_size" in str(error), error

# A wrong key, for the service that requires a key.
url, _ = SERVICES[1]
error = refusal(lambda: embedding(url, "wrong").get_text_embedding(pictures(url)[0]), openai.AuthenticationError)
assert "This service requires a key" in str(error), error
