"""Python, LangChain: OpenAIEmbeddings, and NVIDIA's connector."""

import warnings

import openai
from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings
from langchain_openai import OpenAIEmbeddings

from openai_api import MODEL, SERVICES, TEXT_IS_REFUSED, check, encoded, pictures, refusal

# NVIDIAEmbeddings warns that it took the model that the service lists.
warnings.filterwarnings("ignore", "Default model is set as", UserWarning)


def open_ai(url, key, **options):
    # With the check of the context's length, LangChain would download a list of tokens from the internet, and
    # send the ids of tokens instead of the text. Without retries, a failure shows at once.
    return OpenAIEmbeddings(
        base_url=url + "/v1", api_key=key, model=MODEL, check_embedding_ctx_length=False, max_retries=0, **options
    )


for url, key in SERVICES:
    # OpenAIEmbeddings requests Base64 by default, which rounds each number. NVIDIAEmbeddings requests floats.
    for embeddings, is_exact in [
        (open_ai(url, key), False),
        (open_ai(url, key, model_kwargs={"encoding_format": "float"}), True),
        (open_ai(url, key, chunk_size=2), False),
        (NVIDIAEmbeddings(base_url=url + "/v1", api_key=key, model=MODEL), True),
        # Without a model, the connector requests the list of models and takes the first.
        (NVIDIAEmbeddings(base_url=url + "/v1", api_key=key), True),
        (NVIDIAEmbeddings(base_url=url + "/v1", api_key=key, max_batch_size=2), True),
    ]:
        check(url, key, embeddings.embed_query, embeddings.embed_documents, is_exact)

    picture_and_text = [pictures(url)[0], "a photo of a cat"]
    too_many = [encoded("formats/plain.jpg")] * 33  # the service accepts 32 in a batch
    error = refusal(lambda: open_ai(url, key).embed_documents(picture_and_text), openai.UnprocessableEntityError)
    assert str(error) == f"Error code: 422 - input[1] {TEXT_IS_REFUSED}", error
    error = refusal(lambda: open_ai(url, key).embed_documents(too_many), openai.UnprocessableEntityError)
    assert "LangChain's chunk_size" in str(error), error

    nvidia = NVIDIAEmbeddings(base_url=url + "/v1", api_key=key)
    # NVIDIA's connector raises plain exceptions, so the text must show which error it is.
    error = refusal(lambda: nvidia.embed_documents(picture_and_text))
    assert str(error) == f"[422] Unprocessable Entity\ninput[1] {TEXT_IS_REFUSED}", error
    error = refusal(lambda: nvidia.embed_documents(too_many))
    assert "NVIDIAEmbeddings' max_batch_size" in str(error), error

# Wrong keys, for the service that requires a key.
url, _ = SERVICES[1]
error = refusal(lambda: open_ai(url, "wrong").embed_query(pictures(url)[0]), openai.AuthenticationError)
assert "This service requires a key" in str(error), error
error = refusal(lambda: NVIDIAEmbeddings(base_url=url + "/v1", api_key="wrong", model=MODEL).embed_query(pictures(url)[0]))
assert str(error).startswith("[401] Unauthorized\nThis service requires a key"), error
# Without a model, the connector requests the list of models. This request is refused, too.
error = refusal(lambda: NVIDIAEmbeddings(base_url=url + "/v1", api_key="wrong"))
assert str(error).startswith("[401] Unauthorized\nThis service requires a key"), error
