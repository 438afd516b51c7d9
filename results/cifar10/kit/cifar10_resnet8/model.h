// cifar10_resnet8: a TensorFlow Lite model for TFLite Micro, 95792 bytes, as an array.

#ifndef CIFAR10_RESNET8_MODEL_H_
#define CIFAR10_RESNET8_MODEL_H_

extern const unsigned char cifar10_resnet8_model[];
extern const unsigned int cifar10_resnet8_model_len;

#endif  // CIFAR10_RESNET8_MODEL_H_
