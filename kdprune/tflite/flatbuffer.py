"""A `.tflite` file as a tree of objects, which can be changed and written again.

For files of our own making; what comes from others is checked by
`read_tflite` first.
"""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"  # At byte 4 of a file.
ALIGNMENT = 16  # What the runtimes expect of a file's buffers, in bytes.


def read_model(data):
    """Reads the content of a `.tflite` file into a `schema.ModelT`."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))


def pack_model(model):
    """Writes a `schema.ModelT` as the content of a `.tflite` file.

    Args:
        model: The tree; the data of its buffers are bytes, as uint8 arrays, or None.

    Returns:
        The file's content, every buffer at a multiple of `ALIGNMENT` bytes.
    """
    model.buffers = [_AlignedBuffer(buffer.data) for buffer in model.buffers]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


class _AlignedBuffer(schema.BufferT):
    """A buffer that starts at a multiple of `ALIGNMENT` bytes in the file.

    The schema demands that; Python's generated code does not do it.
    """

    def Pack(self, builder):
        place = None
        if self.data is not None:
            content = np.asarray(self.data, np.uint8).tobytes()
            builder.Prep(ALIGNMENT, len(content))
            place = builder.CreateByteVector(content)
        schema.BufferStart(builder)
        if place is not None:
            schema.BufferAddData(builder, place)
        return schema.BufferEnd(builder)
