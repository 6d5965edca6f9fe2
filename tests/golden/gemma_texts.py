"""The texts of gemma.npz, for the script that makes it and the test that reads it."""

TEXTS = (
    "The lighthouse stood at the end of the pier, and every evening an old man climbed its stairs "
    "to see that the lamp was clean. In 1957 a storm broke 12 of its windows.",
    "灯塔在码头的尽头，每天傍晚都有一位老人爬上楼梯，看看灯是否干净。",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))  # 12\n",
)
