"""What steps share whose network is told which tokens of the text count."""

from torch import Tensor

from lssgen.models.nets.step import Step, flatten_branches


class MaskedTextStep(Step):
    """A step with text and its mask as conditioning. A family gives `velocity`."""

    def forward(
        self,
        latent: Tensor,
        history: Tensor,
        noise: Tensor,
        row: Tensor,
        guidance_weights: Tensor,
        prompt_embeds: Tensor,
        prompt_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        words, mask = flatten_branches(prompt_embeds), flatten_branches(prompt_mask)

        def velocity(x: Tensor, label: Tensor) -> Tensor:
            return self.velocity(x, label, words, mask)

        return self.advance(velocity, latent, history, noise, row, guidance_weights)

    def velocity(self, x: Tensor, label: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The network.

        Args:
            x: (n, C, height, width) float32.
            label: (n,) timestep in 0 to 1000.
            text: (n, tokens, width of the text).
            mask: (n, tokens), 1 where a token counts.
        """
        raise NotImplementedError
