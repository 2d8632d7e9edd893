"""Python, openai: vectors in Base64, which this client requests by default, and as floats."""

import openai

from openai_api import MODEL, SERVICES, TEXT_IS_REFUSED, check, encoded, pictures, refusal

for url, key in SERVICES:
    # Without retries, a failure shows at once.
    client = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0)

    def embed(input, **options):
        answer = client.embeddings.create(model=MODEL, input=input, **options)
        assert [entry.index for entry in answer.data] == list(range(len(answer.data)))
        return [entry.embedding for entry in answer.data]

    check(url, key, lambda picture: embed(picture)[0], embed, is_exact=False)
    as_floats = {"encoding_format": "float"}
    check(url, key, lambda picture: embed(picture, **as_floats)[0], lambda batch: embed(batch, **as_floats), is_exact=True)

    # With `normalized`, the squares of a vector's numbers add up to 1.
    normalized = embed(pictures(url), extra_body={"normalized": True})
    assert all(abs(sum(number * number for number in vector) - 1) < 1e-6 for vector in normalized)

    error = refusal(lambda: embed([pictures(url)[0], "a photo of a cat"]), openai.UnprocessableEntityError)
    assert str(error) == f"Error code: 422 - input[1] {TEXT_IS_REFUSED}", error
    assert (error.param, error.code, error.type) == ("input[1]", "validation_failed", "invalid_request_error"), error.body
    assert error.request_id

    # The service accepts at most 32 pictures in a batch.
    error = refusal(lambda: embed([encoded("formats/plain.jpg")] * 33), openai.UnprocessableEntityError)
    assert "33 pictures" in str(error) and error.param == "input", error
    error = refusal(lambda: embed(pictures(url), dimensions=256), openai.BadRequestError)
    assert (error.param, error.code) == ("dimensions", "unsupported_parameter"), error.body
    error = refusal(lambda: client.embeddings.create(model="text-embedding-3-small", input="x"), openai.NotFoundError)
    assert (error.param, error.code) == ("model", "model_not_found"), error.body

    # With errors=item, only the refused entry has an error.
    options = {"extra_query": {"errors": "item"}}
    embedded, refused = client.embeddings.create(model=MODEL, input=[pictures(url)[0], "a photo of a cat"], **options).data
    assert len(embedded.embedding) == 1536 and embedded.object == "embedding"
    assert refused.object == "error" and refused.embedding is None and refused.error["param"] == "input[1]", refused

    # Each service is a sandbox: it lists its model as `sandbox/perceptual`, and also accepts NVIDIA's name, `MODEL`.
    [model] = client.models.list().data
    assert client.models.retrieve(MODEL).id == client.models.retrieve(model.id).id == model.id

# A wrong key, for the service that requires a key.
url, _ = SERVICES[1]
client = openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0)
error = refusal(lambda: client.embeddings.create(model=MODEL, input=pictures(url)), openai.AuthenticationError)
assert "This service requires a key" in str(error) and error.type == "authentication_error", error
