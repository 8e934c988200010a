import pytest

from cloud_hf.data.builders.published import check_number, published_name


def test_names_of_the_published_data():
    assert published_name("oracle", None) == "ankner/Llama3-8b-ultra-oracle"
    assert published_name("self-gen", "8b") == "ankner/Llama3-8b-ultra-self-gen-8b"
    assert published_name("self-gen", "70b") == "ankner/Llama3-8b-ultra-self-gen-70b"


@pytest.mark.parametrize(
    ("rows", "expected", "fits"),
    [(116_500, "117k", True), (117_499, "117k", True), (116_400, "117k", False), (117_600, "117k", False),
     (6_130, "6.13k", True), (6_134, "6.13k", True), (6_120, "6.13k", False), (63_967, "64k", True), (61_135, "64k", False)],
)  # fmt: skip
def test_numbers_are_compared_to_the_digits_that_are_known(rows, expected, fits):
    if fits:
        check_number(rows, expected, "The source")
    else:
        with pytest.raises(ValueError, match=f"The source has {rows} rows instead of {expected}"):
            check_number(rows, expected, "The source")
