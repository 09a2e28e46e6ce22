/* First word of every page that the self-check fills: dom0's lab-poke finds such pages by it. */
#define SELFCHECK_MARK 0x5e1fc43c5afe9a6eULL
