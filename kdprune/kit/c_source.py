"""A `.tflite` file as C++ source, for devices without a file system."""

_BYTES_PER_LINE = 12

_HEADER = """\
// {title}: a TensorFlow Lite model for TFLite Micro, {size} bytes, as an array.

#ifndef {guard}
#define {guard}

extern const unsigned char {array}[];
extern const unsigned int {array}_len;

#endif  // {guard}
"""

_SOURCE = """\
#include "{header}"

// TFLite Micro reads weights in place, and wants them aligned.
alignas(16) const unsigned char {array}[] = {{
{rows}
}};
const unsigned int {array}_len = {size};
"""


def c_source(
    data: bytes, array: str, *, title: str, header: str = "model.h"
) -> tuple[str, str]:
    """Writes a file's bytes as a C++ array, aligned to 16 bytes.

    Args:
        data: The file's content.
        array: The array's name, an identifier; its length is `<array>_len`.
        title: The model's name, for the header's first line.
        header: How the source includes the header.

    Returns:
        The header's and the source's text.
    """
    lines = (
        data[start : start + _BYTES_PER_LINE]
        for start in range(0, len(data), _BYTES_PER_LINE)
    )
    rows = "\n".join(
        "    " + " ".join(f"0x{byte:02x}," for byte in line) for line in lines
    )
    names = {
        "title": title,
        "array": array,
        "guard": f"{array.upper()}_H_",
        "size": len(data),
        "header": header,
    }
    return _HEADER.format(**names), _SOURCE.format(**names, rows=rows)
